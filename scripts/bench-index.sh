#!/usr/bin/env bash
# The vector index beside its peers. Builds the workers, installs the Python peers into a directory below
# the target directory, measures on the real and on the synthetic set, and writes JSON, tables and plots.
#
#   scripts/bench-index.sh [OUT]            OUT: docs/benchmarks unless given
#
# ENGRAM_DATA: directory that holds wordnet/; without it the real set is left out, and beside and open take the
# synthetic one.  QUIET: a command put before each measurement.
# PARTS: real synthetic beside open (default all).  BENCH_ARGS: more for scripts/bench_index.py run.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-docs/benchmarks}
if [ -n "${ENGRAM_DATA:-}" ]; then
  parts=${PARTS:-real synthetic beside open}
  rest=real
else
  parts=${PARTS:-synthetic beside open}
  rest=synthetic
  echo "ENGRAM_DATA is not set to a directory that holds wordnet/: measuring without real data"
fi
target=${CARGO_TARGET_DIR:-target}
venv=$target/bench-index

${CARGO:-cargo} build --release --locked -p engram-benches --no-default-features --bin index
${CARGO:-cargo} build --release --locked --manifest-path benches/hnsw_rs/Cargo.toml --target-dir "$target/hnsw_rs"
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --only-binary :all: numpy usearch faiss-cpu pybind11 setuptools wheel
  # It comes as source alone: a small C++ extension, which its build compiles for this CPU.
  "$venv/bin/pip" install --quiet --no-build-isolation --no-deps hnswlib
fi

bench() {
  ${QUIET:-} "$venv/bin/python" scripts/bench_index.py "$@" --out "$out" \
    --engram "$target/release/index" --hnsw-rs "$target/hnsw_rs/release/bench-hnsw-rs" --data "${ENGRAM_DATA:-}"
}

for part in $parts; do
  case $part in
    # shellcheck disable=SC2086
    real | synthetic) bench run --set "$part" ${BENCH_ARGS:-} ;;
    beside | open) bench extra --set "$rest" --what "$part" ;;
    *) echo "unknown part $part" >&2; exit 2 ;;
  esac
done
bench report

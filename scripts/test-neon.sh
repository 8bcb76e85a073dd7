#!/usr/bin/env bash
# Runs the kernel tests (golden bits among them) and the small topology tests on aarch64 under user-mode
# emulation. Needs the Rust target aarch64-unknown-linux-gnu, aarch64-linux-gnu-gcc (a linker) and
# qemu-aarch64; without one of them it says so and is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
missing=()
command -v aarch64-linux-gnu-gcc >/dev/null || missing+=("aarch64-linux-gnu-gcc (package gcc-aarch64-linux-gnu)")
command -v qemu-aarch64 >/dev/null || missing+=("qemu-aarch64 (package qemu-user)")
[ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || missing+=("the Rust target (rustup target add $target)")
if [ ${#missing[@]} -gt 0 ]; then
  printf 'test-neon: skipped, this machine lacks %s\n' "${missing[@]}"
  exit 0
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
${CARGO:-cargo} test -p engram-core --no-default-features --locked --lib --target "$target" -- \
  kernel:: index::codes index::tests::small_logs index::tests::frozen "$@"

#!/usr/bin/env bash
# Checks the licences, versions and sources of all dependencies against deny.toml, and their
# security advisories where the advisory database can be reached. What is skipped is said.
#
#   DENY_INSTALL=1         installs cargo-deny when it is missing (CI does)
#   DENY_INSTALL_LIMIT=15m gives up installing after that long
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo deny --version >/dev/null 2>&1; then
  if [[ "${DENY_INSTALL:-0}" != 1 ]]; then
    echo "SKIPPED cargo-deny: it is not installed. To install it: cargo install cargo-deny --locked"
    exit 0
  fi
  limit="${DENY_INSTALL_LIMIT:-15m}"
  echo "cargo-deny is missing: installing it (unoptimised, which builds faster; at most $limit)"
  # A directory of its own: the flags of this repository must not mix with it.
  build="$(mktemp -d)"
  if ! (cd / && CARGO_TARGET_DIR="$build" timeout "$limit" \
    cargo install cargo-deny --locked --debug --quiet); then
    rm -rf "$build"
    echo "SKIPPED cargo-deny: it could not be installed within $limit"
    exit 0
  fi
  rm -rf "$build"
fi

checks=(bans licenses sources)
if timeout 60s cargo deny --log-level off fetch db >/dev/null 2>&1; then
  checks+=(advisories)
else
  echo "SKIPPED advisories: their database cannot be reached from this machine"
fi
cargo deny --workspace --all-features check --hide-inclusion-graph "${checks[@]}"

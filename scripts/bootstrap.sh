#!/usr/bin/env bash
# Installs what building Engram needs and this machine lacks. Called by `make demo`, `make test` and
# .ci/run; a second run finds everything there, installs nothing and ends at once.
#
# It expects a Debian 12 or newer (or Ubuntu) with Rust, make and git, run as root or with sudo. On
# another system it installs nothing and names what is missing.
set -euo pipefail

say() { printf 'bootstrap: %s\n' "$*"; }

die() {
  printf 'bootstrap: %s\n' "$*" >&2
  exit 1
}

packages=()
reasons=()
need() {
  packages+=("$1")
  reasons+=("$1: $2")
}

# bindgen loads libclang as a library and needs the compiler headers that lie beside it.
have_libclang() {
  [[ -n "${LIBCLANG_PATH:-}" ]] && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null &&
    compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stdbool.h' >/dev/null
}

have_certificates() {
  [[ -s "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" || -s /etc/pki/tls/certs/ca-bundle.crt ]]
}

if ! command -v cargo >/dev/null; then
  die "cargo is not in PATH. Engram builds with Rust (the version is 'rust-version' in Cargo.toml):
  install it with rustup or your package manager, then run this again."
fi

command -v cc >/dev/null || need gcc "the C compiler, also Rust's linker"
command -v c++ >/dev/null || need g++ "RocksDB is C++ and is built from source"
have_libclang || need libclang-dev "RocksDB's Rust bindings are generated with libclang"
command -v python3 >/dev/null || need python3 "scripts of this repository"
have_certificates || need ca-certificates "cargo downloads crates over TLS"

[[ ${#packages[@]} -eq 0 ]] && exit 0

say "this machine lacks ${#packages[@]} package(s) that the build needs:"
printf '  %s\n' "${reasons[@]}"

command -v apt-get >/dev/null ||
  die "there is no apt-get here. Install the above with your package manager, then run this again."

as_root=()
if [[ "$(id -u)" -ne 0 ]]; then
  command -v sudo >/dev/null ||
    die "installing needs root, and there is no sudo. As root: apt-get install ${packages[*]}"
  as_root=(sudo)
fi

say "installing through apt: ${packages[*]}"
log="$(mktemp)"
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 "$@" >>"$log" 2>&1; }
if ! { apt update && apt install -y --no-install-recommends "${packages[@]}"; }; then
  tail -n 20 "$log" >&2
  die "apt could not install them (the whole output is in $log)."
fi
rm -f "$log"
say "done."

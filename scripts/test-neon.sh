#!/usr/bin/env bash
# Runs the kernel tests (golden bits among them) and the small topology tests on aarch64 under user-mode
# emulation. Needs a Rust compiler with the target aarch64-unknown-linux-gnu, aarch64-linux-gnu-gcc (a linker)
# and qemu-aarch64; without one of them it says so and is skipped. INSTALL=1 brings what is missing from Debian's
# packages, the compiler among them: rustup's toolchain is used where it has the target, else Debian's rustc-web.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
debian_rustc=/usr/bin/rustc

install() {
  dpkg --print-foreign-architectures | grep -qx arm64 || dpkg --add-architecture arm64
  apt-get update -q
  apt-get install -qy --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user \
    rustc-web libstd-rust-web-dev:arm64
}

has_target() {
  [ -d "$("$1" --print sysroot 2>/dev/null)/lib/rustlib/$target/lib" ]
}

look() {
  missing=()
  command -v aarch64-linux-gnu-gcc >/dev/null || missing+=("aarch64-linux-gnu-gcc (package gcc-aarch64-linux-gnu)")
  command -v qemu-aarch64 >/dev/null || missing+=("qemu-aarch64 (package qemu-user)")
  if has_target "${RUSTC:-rustc}"; then
    :
  elif [ -x "$debian_rustc" ] && has_target "$debian_rustc"; then
    export RUSTC=$debian_rustc
  else
    missing+=("the Rust target (rustup target add $target, or packages rustc-web and libstd-rust-web-dev:arm64)")
  fi
}

look
if [ ${#missing[@]} -gt 0 ] && [ "${INSTALL:-0}" = 1 ]; then
  install
  look
fi
if [ ${#missing[@]} -gt 0 ]; then
  printf 'test-neon: skipped, this machine lacks %s\n' "${missing[@]}"
  echo "test-neon: INSTALL=1 make test-neon brings them (Debian, as root)"
  exit 0
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# With Debian's libc of arm64 installed the loader must be its own: that of the cross compiler would find this libc
# through the cache, which is of another build, and hang at the first thread.
prefix=/usr/aarch64-linux-gnu
[ -e /lib/ld-linux-aarch64.so.1 ] && prefix=/
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $prefix"
# A directory of its own: another compiler would make all other builds start anew.
${CARGO:-cargo} test -p engram-core --no-default-features --locked --lib --target "$target" \
  --target-dir "${CARGO_TARGET_DIR:-target}/neon" -- \
  kernel:: index::codes index::tests::small_logs index::tests::frozen "$@"

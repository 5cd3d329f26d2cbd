#!/usr/bin/env bash
# Builds tests for aarch64 and runs them in an emulator: what the NEON kernels compute, not how fast.
#
#   scripts/aarch64-tests.sh [ARGUMENTS OF cargo test]      by default: --lib models::kernels
#
# The emulator is an early aarch64 processor (Cortex-A53), so that nothing beyond what all of them have is used.
# RUSTC names a compiler that has the target's standard library, if the usual one has not.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
gcc=aarch64-linux-gnu-gcc
emulator=qemu-aarch64
rustc=${RUSTC:-rustc}

missing=0
missing() { echo "missing: $1" >&2; missing=1; }
has() { command -v "$1" >/dev/null; }
has cargo || missing cargo
has "$emulator" || missing "$emulator (Debian: qemu-user)"
if ! has "$rustc"; then
  missing "$rustc"
elif ! compgen -G "$("$rustc" --print target-libdir --target "$target")/libstd-*.rlib" >/dev/null; then
  missing "the standard library of $target in $rustc (rustup target add $target; or set RUSTC)"
fi
loader=
if ! has "$gcc"; then
  missing "$gcc (Debian: gcc-aarch64-linux-gnu)"
else
  # Without a file of that name gcc answers the bare name.
  loader=$("$gcc" -print-file-name=ld-linux-aarch64.so.1)
  [ -e "$loader" ] || missing "the C library of $target (Debian: libc6-dev-arm64-cross)"
fi
[ "$missing" = 0 ] || exit 1

libraries=$(cd "$(dirname "$loader")" && pwd -P)
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$gcc
# Without the search path the loader of one C library may take another's from this system, and hang.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$emulator -cpu cortex-a53 -L ${libraries%/lib*} -E LD_LIBRARY_PATH=$libraries"
[ $# -gt 0 ] || set -- --lib models::kernels
exec cargo test --locked --target "$target" "$@"

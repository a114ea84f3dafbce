#!/usr/bin/env bash
# Compiles a program of one file in Rust for wasm32-wasip1: rust.sh [--reactor] SOURCE.rs OUTPUT.wasm
#
# The output is a core module, a preview 1 command, or a reactor. The tests make a component of it with the preview 1
# adapter, as of any other module. The compiler is that of Debian 13: see rust-toolchain.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/debian.sh
. "$here/../../deploy/debian.sh"
# shellcheck source=tests/guests/rust-toolchain.sh
. "$here/rust-toolchain.sh"

kind=bin
if [ "${1:-}" = --reactor ]; then
    kind=cdylib
    shift
fi
[ $# -eq 2 ] || {
    echo "usage: rust.sh [--reactor] SOURCE.rs OUTPUT.wasm" >&2
    exit 2
}
source=$(realpath "$1") output=$(realpath -m "$2")
toolchain=$(rust_toolchain trixie)
"$toolchain/bin/rustc" --edition 2021 --crate-name "$(basename "$source" .rs)" --crate-type "$kind" \
    --target wasm32-wasip1 -C linker="$toolchain/bin/wasm-ld" -C opt-level=2 -C strip=symbols \
    -o "$output" "$source" >&2

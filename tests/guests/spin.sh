#!/usr/bin/env bash
# Builds a component with one of Spin's SDKs, and prints the path of what its compiler makes:
#
#   spin.sh rust-5       spin/rust-5, a core module of wasm32-wasip1 (Debian 13's compiler)
#   spin.sh rust-6       spin/rust-7 with SDK 6, a core module of wasm32-wasip2 (the compiler of Debian's next release)
#   spin.sh rust-7       spin/rust-7, the same
#
# The SDKs come from the crate registry, in the versions of the lock files. The outputs are kept
# outside of the repository, in $HEARTH_GUESTS_CACHE (~/.cache/hearth/guests), under a name with the digest of all inputs;
# any number of callers may run at once. One of Rust takes one to two minutes on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/debian.sh
. "$here/../../deploy/debian.sh"
# shellcheck source=tests/guests/rust-toolchain.sh
. "$here/rust-toolchain.sh"
sources=$here/spin
cache=${HEARTH_GUESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/guests}

fail() {
    echo "spin.sh: $*" >&2
    exit 1
}

# The module of the crate in $sources/DIRECTORY: rust DIRECTORY SUITE TARGET
rust() {
    local directory=$1 suite=$2 target=$3 toolchain linker
    toolchain=$(rust_toolchain "$suite")
    linker=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$target")_LINKER
    # (The compilers are older or newer than the SDK's oldest one, which is only what its authors test.)
    env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS RUSTC="$toolchain/bin/rustc" RUSTC_WRAPPER='' \
        "$linker=$toolchain/bin/wasm-ld" CARGO_TARGET_DIR="$work/target" \
        cargo build --quiet --release --locked --ignore-rust-version --target "$target" \
        --manifest-path "$sources/$directory/Cargo.toml" >&2 || fail "$directory cannot be built (see above)"
    mv "$work/target/$target/release/guest.wasm" "$work/output.wasm"
}

kind=${1:-}
case $kind in
rust-5) inputs=(rust-5/Cargo.toml rust-5/Cargo.lock rust-5/src/lib.rs) ;;
rust-6 | rust-7) inputs=("$kind/Cargo.toml" "$kind/Cargo.lock" rust-7/src/lib.rs) ;;
*)
    echo "usage: spin.sh rust-5|rust-6|rust-7" >&2
    exit 2
    ;;
esac
key=$({ cat "$here/spin.sh" "$here/rust-toolchain.sh"; cd "$sources" && cat "${inputs[@]}"; } | sha256sum | cut -c -16)
output=$cache/spin-$kind-$key.wasm
mkdir -p "$cache"

make_it() {
    case $kind in
    rust-5) rust rust-5 trixie wasm32-wasip1 ;;
    *) rust "$kind" forky wasm32-wasip2 ;;
    esac
}

if [ ! -f "$output" ]; then
    exec 9>"$output.lock"
    flock 9
    if [ ! -f "$output" ]; then
        work=$(mktemp -d "$cache/work.XXXXXX")
        trap 'rm -rf -- "$work"' EXIT
        make_it
        mv "$work/output.wasm" "$output"
    fi
    rm -f -- "$output.lock"
fi
echo "$output"

#!/usr/bin/env bash
# Compiles a program of one file in Rust for wasm32-wasip1: rust.sh [--reactor] SOURCE.rs OUTPUT.wasm
#
# The output is a core module, a preview 1 command, or a reactor. The tests make a component of it with the preview 1
# adapter, as of any other module.
#
# Compiler, standard library and linker are the packages of Debian 13 (trixie), whose standard library for WebAssembly
# is of the compiler's own version. They and the libraries they need are unpacked beside this machine's own, in
# $HEARTH_GUESTS_CACHE (~/.cache/hearth/guests), and run with their own dynamic linker: nothing is installed, and this
# machine may be another Debian. The download is 170 MB, and takes 5 to 60 seconds, once; 340 MB are kept. A program
# compiles in less than a second.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/debian.sh
. "$here/../../deploy/debian.sh"

suite=trixie
# The toolchain that `fetch` below makes: raise its number when `fetch` makes another one.
name=rust-trixie-1
packages=(
    rustc libstd-rust-1.85 libstd-rust-dev-wasm32   # the compiler, and the standard library of its targets
    lld-19                                          # wasm-ld
    # The libraries of these programs: LLVM's, and the C library's.
    libllvm19 libedit2 libffi8 libxml2 libicu76 liblzma5 libz3-4 libtinfo6 libbsd0 libmd0
    libc6 libgcc-s1 libstdc++6 zlib1g libzstd1
)

fail() {
    echo "rust.sh: $*" >&2
    exit 1
}

# A script `NEW/bin/NAME` that runs a program of the toolchain with the toolchain's own dynamic linker and libraries:
# wrap NEW NAME PROGRAM [ARGUMENT...]
wrap() {
    local new=$1 program_name=$2 program=$3
    shift 3
    cat >"$new/bin/$program_name" <<END
#!/bin/sh
root=\$(cd "\$(dirname "\$0")/.." && pwd)
exec "\$root"/lib/ld-linux-*.so.* --library-path "\$root/lib" --argv0 $program_name "\$root/$program" $* "\$@"
END
    chmod 755 "$new/bin/$program_name"
}

# Fetches the packages, and makes the toolchain in the new directory $work/new.
fetch() {
    local root=$work/root new=$work/new
    mkdir -p "$new/bin" "$new/programs" "$new/sysroot/lib/rustlib"
    debian_unpack "$work" "$suite" "$root" "${packages[@]}" >"$work/log" 2>&1 ||
        fail "$(cat "$work/log")"$'\n'"rust.sh: cannot fetch the Rust of Debian $suite"
    cp -a "$root"/usr/lib/*-linux-gnu "$new/lib"
    rm -rf "$new/lib/gconv"
    mv "$root/usr/bin/rustc" "$root/usr/lib/llvm-19/bin/lld" "$new/programs/"
    mv "$root/usr/lib/rustlib/wasm32-wasip1" "$new/sysroot/lib/rustlib/"
    # (Single quotes: the wrapper expands it.)
    # shellcheck disable=SC2016
    wrap "$new" rustc programs/rustc --sysroot '"$root/sysroot"' -C 'linker="$root/bin/wasm-ld"'
    wrap "$new" wasm-ld programs/lld
    "$new/bin/rustc" --version >&2 || fail "the Rust of Debian $suite does not run on this machine"
}

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
cache=${HEARTH_GUESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/guests}
toolchain=$cache/$name
mkdir -p "$cache"
made_once "$toolchain" fetch
"$toolchain/bin/rustc" --edition 2021 --crate-name "$(basename "$source" .rs)" --crate-type "$kind" \
    --target wasm32-wasip1 -C opt-level=2 -C strip=symbols -o "$output" "$source" >&2

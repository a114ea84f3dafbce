# The Rust compilers of Debian, for guests. To be sourced, after deploy/debian.sh; `made_once` and the functions for
# packages are from there.
#
# Compiler, standard libraries and linker are the packages of a suite, whose standard library for WebAssembly is of the
# compiler's own version: 1.85 in trixie (Debian 13), the newest in forky, the next release. They and the libraries they
# need are unpacked beside this machine's own, in $HEARTH_GUESTS_CACHE (~/.cache/hearth/guests), and run with their own
# dynamic linker: nothing is installed, and this machine may be another Debian. The download is 210 MB, and takes 5 to 60
# seconds, once; 520 MB are kept. A program compiles in less than a second.
# shellcheck shell=bash

# A script `NEW/bin/NAME` that runs a program of the toolchain with the toolchain's own dynamic linker and libraries:
# rust_wrap NEW NAME PROGRAM [ARGUMENT...]
rust_wrap() {
    local new=$1 program_name=$2 program=$3
    shift 3
    cat >"$new/bin/$program_name" <<END
#!/bin/sh
root=\$(cd "\$(dirname "\$0")/.." && pwd)
exec "\$root"/lib/ld-linux-*.so.* --library-path "\$root/lib" --argv0 $program_name "\$root/$program" $* "\$@"
END
    chmod 755 "$new/bin/$program_name"
}

# The packages of a suite: the compiler, its standard libraries, the linker of the same LLVM, and the libraries of these
# programs. Their names have versions, which the packages' own dependencies tell.
rust_packages() {
    local private=$1 needed llvm
    needed=$(apt-cache -o "Dir::Etc::SourceList=$private/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o "Dir::State::Lists=$private/lists" -o "Dir::Cache=$private/cache" \
        depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
        libstd-rust-dev | grep '^[a-z]' | sort -u)
    llvm=$(sed -n 's/^libllvm\([0-9]*\)$/\1/p' <<<"$needed")
    [ -n "$llvm" ] || return 1
    echo "rustc libstd-rust-dev-wasm32 lld-$llvm" "$needed"
}

# Makes the toolchain of a suite in the new directory $work/new.
rust_fetch() {
    local suite=$1 root=$work/root new=$work/new packages
    mkdir -p "$new/bin" "$new/programs" "$new/sysroot/lib/rustlib"
    if ! debian_lists "$work/apt" "$suite" deb >"$work/log" 2>&1 ||
        ! packages=$(rust_packages "$work/apt" 2>>"$work/log") ||
        # (Names of packages, divided by blanks.)
        # shellcheck disable=SC2086
        ! debian_unpack "$work" "$suite" "$root" $packages >>"$work/log" 2>&1; then
        cat "$work/log" >&2
        echo "cannot fetch the Rust of Debian $suite" >&2
        exit 1
    fi
    cp -a "$root"/usr/lib/*-linux-gnu "$new/lib"
    rm -rf "$new/lib/gconv"
    mv "$root/usr/bin/rustc" "$root"/usr/lib/llvm-*/bin/lld "$new/programs/"
    mv "$root/usr/lib/rustlib/wasm32-wasip1" "$root/usr/lib/rustlib/wasm32-wasip2" \
        "$root"/usr/lib/rustlib/*-linux-gnu "$new/sysroot/lib/rustlib/"
    # (Single quotes: the wrapper expands it.)
    # shellcheck disable=SC2016
    rust_wrap "$new" rustc programs/rustc --sysroot '"$root/sysroot"'
    rust_wrap "$new" wasm-ld programs/lld
    if ! "$new/bin/rustc" --version >&2; then
        echo "the Rust of Debian $suite does not run on this machine" >&2
        exit 1
    fi
}

# Prints the directory of a suite's toolchain, which is made when it is missing. Raise the number when `rust_fetch` makes
# another one.
rust_toolchain() {
    local cache=${HEARTH_GUESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/guests}
    mkdir -p "$cache"
    made_once "$cache/rust-$1-2" rust_fetch "$1" >&2
    echo "$cache/rust-$1-2"
}

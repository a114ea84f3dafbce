#!/usr/bin/env bash
# Prints the path of a `wasmtime` program of exactly the version that the workspace is locked to.
#
# It is built from the crate registry with cargo, 5 to 10 minutes on two cores, once: the result is kept in
# ${XDG_CACHE_HOME:-~/.cache}/hearth-bench, under a name with the digest of its inputs, and no file of it comes into
# this repository. It has the features that `serve` needs with a pool, and wasmtime's features of hearthd (Cargo.toml);
# it is optimised as hearthd is.
set -euo pipefail
cd "$(dirname "$0")/.."

features=(
    run serve compile component-model-async   # wasi:http 0.2 and 0.3, all of wasi:cli for components that import it
    pooling-allocator parallel-compilation
    gc gc-drc gc-null gc-copying threads demangle backtrace
)
export CARGO_PROFILE_RELEASE_OPT_LEVEL=3 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_LTO=false

version=$(sed -n '/^name = "wasmtime"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)
key=$({ echo "$version ${features[*]}"; env | grep '^CARGO_PROFILE_RELEASE_' | sort; rustc --version; } |
    sha256sum | cut -c -16)

say() {
    echo "wasmtime.sh: $*" >&2
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/hearth-bench
result=$cache/wasmtime-$version-$key
mkdir -p "$cache"
# One at a time: another checkout waits, and then finds it done.
exec {lock}>"$cache/lock"
flock "$lock"
if [ ! -x "$result" ]; then
    work=$(mktemp -d "$cache/work.XXXXXX")
    trap 'rm -rf -- "$work"' EXIT
    say "building wasmtime $version, once"
    # Away from this workspace and its configuration; -j and nice are the caller's (CARGO_BUILD_JOBS).
    (
        cd "$work"
        ${CARGO:-cargo} install --quiet --locked --no-track --root "$work" --target-dir "$work/target" \
            --no-default-features --features "${features[*]}" --version "=$version" wasmtime-cli >&2
    ) || {
        say "cargo cannot install wasmtime-cli $version (see above)"
        exit 1
    }
    mv "$work/bin/wasmtime" "$result"
fi
echo "$result"

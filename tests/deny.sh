#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licences, sources, forbidden crates and security advisories.
#
#   deny.sh                with cargo-deny, which is compiled once into the cache if it is missing
#   deny.sh --no-install   with cargo-deny if it is there, else by this script: licences, sources, forbidden crates
#
# CI uses --no-install. Compiling cargo-deny takes 4 minutes of CPU time (measured: 5 min 46 s on two busy cores), and
# what it adds to this script are the advisories. They are a git repository, which CI without access to git hosts cannot
# read. Where they are not checked, the last line of the output says so.
set -euo pipefail
cd "$(dirname "$0")/.."

# The version that is compiled. It is built with the Rust of rust-toolchain.toml.
version=0.20.2
tools=${XDG_CACHE_HOME:-$HOME/.cache}/hearth/tools
cargo=${CARGO:-cargo}

fail() {
    echo "deny: $*" >&2
    exit 1
}

not_checked() {
    echo "deny: NOT CHECKED: security advisories ($1)"
}

# Sets the array `cargo_deny`, or fails if there is none.
find_cargo_deny() {
    local program
    program=$(command -v cargo-deny) || program=$tools/bin/cargo-deny
    [ -x "$program" ] && cargo_deny=("$program" --locked)
}

with_cargo_deny() {
    "${cargo_deny[@]}" check licenses bans sources
    # A database that cannot be fetched is told apart from an advisory that applies.
    if "${cargo_deny[@]}" fetch db >/dev/null 2>&1; then
        "${cargo_deny[@]}" check advisories
    else
        not_checked "the advisory database cannot be fetched"
    fi
}

# The strings of a list in deny.toml: strings_of KEY, for `KEY = [`, a string on each line, `]`.
strings_of() {
    sed -n "/^$1 = \[/,/^\]/ s/^ *\"\(.*\)\",\$/\1/p" deny.toml
}

# Whether a licence expression (SPDX, or the old form with a slash) is satisfied by the allowed licences.
allowed() {
    local words=() word terms=
    # "Apache-2.0 WITH LLVM-exception" is one licence.
    read -ra words <<<"$(sed -e 's/ WITH /+/g' -e 's|/| OR |g' -e 's/[()]/ & /g' <<<"$1")"
    for word in "${words[@]}"; do
        case $word in
        OR) terms+='||' ;;
        AND) terms+='&&' ;;
        '(' | ')') terms+=$word ;;
        *) grep -qxF -- "$word" <<<"$licences" && terms+=1 || terms+=0 ;;
        esac
    done
    # An expression that is malformed is an error of the arithmetic, and not allowed.
    [ -n "$terms" ] && (( terms )) 2>/dev/null
}

by_this_script() {
    local licences crates crate expression checked=0 wrong=0 foreign
    licences=$(strings_of allow | sed 's/ WITH /+/g')
    [ -n "$licences" ] || fail "deny.toml allows no licence"
    local targets=()
    while read -r target; do
        targets+=(--target "$target")
    done < <(sed -n '/^targets = /s/"\([^"]*\)"/\n\1\n/gp' deny.toml | grep -- -linux-)
    [ ${#targets[@]} -gt 0 ] || fail "deny.toml names no target"
    crates=$("$cargo" tree --locked --workspace --prefix none --format '{p}|{l}' "${targets[@]}" -e normal,build,dev)
    while IFS='|' read -r crate expression; do
        checked=$((checked + 1))
        allowed "$expression" && continue
        echo "deny: ${crate%% (*}: the licence \"$expression\" is not one that deny.toml allows" >&2
        wrong=1
    done < <(sed -e '/^$/d' -e 's/ (\*)$//' <<<"$crates" | sort -u)
    # Of one registry each: a git repository, or a second registry, is another source.
    foreign=$(sed -n 's/^source = "\(.*\)"$/\1/p' Cargo.lock | sort -u)
    case $foreign in
    *$'\n'* | git+*) echo "deny: Cargo.lock has other sources than one registry: $foreign" >&2; wrong=1 ;;
    esac
    while read -r crate; do
        ! grep -qxF "name = \"$crate\"" Cargo.lock || { echo "deny: $crate is forbidden by deny.toml" >&2; wrong=1; }
    done < <(sed -n 's/^ *{ crate = "\([^"]*\)" },$/\1/p' deny.toml)
    [ "$wrong" -eq 0 ] || exit 1
    echo "deny: licences of $checked crates, sources and forbidden crates are right (checked without cargo-deny)"
    not_checked "cargo-deny is not installed; \`make deny\` compiles it once"
}

case ${1:-} in
'' | --no-install) ;;
*) fail "unknown option $1: say --no-install, or nothing" ;;
esac
if ! find_cargo_deny; then
    if [ "${1:-}" = --no-install ]; then
        by_this_script
        exit
    fi
    echo "deny: compiling cargo-deny $version into $tools, once; this takes some minutes"
    "$cargo" install --quiet --locked --root "$tools" "cargo-deny@$version"
    find_cargo_deny || fail "$tools/bin/cargo-deny was not made"
fi
with_cargo_deny

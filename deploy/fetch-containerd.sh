#!/usr/bin/env bash
# fetch-containerd.sh SUITE...: unpacks the containerd of other Debian suites below target/containerd,
# without installing it, and prints the directory of its programs, a line for each suite.
#
# What is there already is not fetched again. A suite that cannot be had is an error that says so, after the
# others were fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/debian.sh
target=${CARGO_TARGET_DIR:-target}/containerd

complain() {
    echo "fetch-containerd: $*" >&2
}

fetch() {
    local suite=$1 directory=$target/$1 private
    [ ! -x "$directory/usr/bin/containerd" ] || return 0
    private=$(mktemp -d)
    # shellcheck disable=SC2064  # as it is now
    trap "rm -rf -- '$private'" RETURN
    debian_unpack "$private" "$suite" "$private/root" containerd >"$private/log" 2>&1 || {
        complain "CANNOT FETCH the containerd of $suite:"
        cat "$private/log" >&2
        return 1
    }
    # (One chain: `set -e` means nothing in a function whose status is looked at.)
    "$private/root/usr/bin/containerd" --version >&2 &&
        mkdir -p "$target" &&
        rm -rf -- "$directory" &&
        mv "$private/root" "$directory" || {
        complain "CANNOT UNPACK the containerd of $suite"
        return 1
    }
}

[ $# -gt 0 ] || {
    complain "name the suites, e.g. trixie forky"
    exit 2
}
status=0
for suite in "$@"; do
    if fetch "$suite"; then
        realpath "$target/$suite/usr/bin"
    else
        status=1
    fi
done
exit $status

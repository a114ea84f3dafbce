#!/usr/bin/env bash
# fetch-docker.sh: unpacks the Docker of Debian's next release below target/docker, without installing it, and prints the
# directory of its programs. What is there already is not fetched again.
#
# containerd and runc are not fetched: the stories have their own.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/debian.sh
suite=forky
directory=${CARGO_TARGET_DIR:-target}/docker
if [ ! -x "$directory/dockerd" ]; then
    private=$(mktemp -d)
    trap 'rm -rf -- "$private"' EXIT
    debian_unpack "$private" "$suite" "$private/root" docker.io docker-cli >"$private/log" 2>&1 || {
        echo "fetch-docker: CANNOT FETCH the Docker of $suite:" >&2
        cat "$private/log" >&2
        exit 1
    }
    mkdir -p "$private/programs"
    find "$private/root/usr" -type f \( -path '*/bin/*' -o -path '*/sbin/*' \) -exec mv -t "$private/programs" {} +
    "$private/programs/dockerd" --version >&2
    mkdir -p "${directory%/*}"
    rm -rf -- "$directory"
    mv "$private/programs" "$directory"
fi
realpath "$directory"

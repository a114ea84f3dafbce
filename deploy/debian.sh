# Packages of any suite of Debian, fetched and unpacked beside this machine's own: nothing is installed, and
# its package lists stay as they are. To be sourced.
#
# Mirror and keyring are those of the machine's own apt configuration.
# shellcheck shell=bash

# The mirror this machine's Debian comes from: "URI component", one line.
debian_mirror() {
    local codename
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(RELEASE) $(REPO_URI) $(COMPONENT)' |
        awk -v codename="$codename" \
            '$1 == "Packages" && $2 == "Debian" && $3 == codename && $5 == "main" && !seen++ { print $4, $5 }'
}

# The Signed-By of the source with this URI; empty if apt's own keys are used.
debian_keyring() {
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

# debian_apt DIRECTORY ARGUMENT...: apt-get with the lists in DIRECTORY.
debian_apt() {
    local private=$1
    shift
    apt-get -o "Dir::Etc::SourceList=$private/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o "Dir::State::Lists=$private/lists" -o "Dir::Cache=$private/cache" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@"
}

# debian_lists DIRECTORY SUITE TYPE...: fetches the lists of a suite into DIRECTORY; types are deb and deb-src.
# (It succeeds where nothing was to be had, too: a download then fails.)
debian_lists() {
    local private=$1 suite=$2 uri component key type
    shift 2
    read -r uri component < <(debian_mirror) || {
        echo "apt knows no mirror of Debian on this machine: configure one, and run \`apt-get update\`" >&2
        return 1
    }
    key=$(debian_keyring "$uri" | head -n 1)
    mkdir -p "$private"/{lists/partial,cache/archives/partial}
    for type; do
        echo "$type ${key:+[signed-by=$key] }$uri $suite $component"
    done >"$private/sources.list"
    debian_apt "$private" --quiet update
}

# debian_unpack WORK SUITE ROOT PACKAGE...: fetches packages of a suite, without those that they depend on, and unpacks
# them in ROOT. Lists and packages go into WORK, an absolute path. (One chain: `set -e` means nothing in a function whose
# status is looked at.)
debian_unpack() {
    local work=$1 suite=$2 root=$3 deb
    shift 3
    mkdir -p "$work/deb" "$root" &&
        debian_lists "$work/apt" "$suite" deb &&
        (cd "$work/deb" && debian_apt "$work/apt" --quiet download "$@") || return 1
    for deb in "$work"/deb/*.deb; do
        dpkg -x "$deb" "$root" || return 1
    done
}

# made_once DIRECTORY COMMAND...: makes a directory of a cache, if it is missing: COMMAND makes $work/new, in $work, a new
# directory beside it that is removed at the end. Callers wait for each other only where DIRECTORY is missing. Not for a
# condition: a failure of COMMAND has to end the subshell.
made_once() {
    local directory=$1
    shift
    [ ! -d "$directory" ] || return 0
    (
        exec 9>"$directory.lock"
        flock 9
        [ ! -d "$directory" ] || exit 0
        work=$(mktemp -d "${directory%/*}/work.XXXXXX")
        trap 'rm -rf -- "$work"' EXIT
        "$@"
        mv -T "$work/new" "$directory"
    )
}

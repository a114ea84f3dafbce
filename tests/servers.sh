#!/usr/bin/env bash
# Unpacks servers that stories talk to, without installing them: servers.sh PACKAGE...
#
# Prints a directory for each package of this machine's Debian: the package and whatever it needs that is not installed
# here, unpacked. `postgresql` is the version that this Debian has. Programs run with its libraries,
# `usr/lib/*-linux-gnu`. No service is started or configured. The directories are kept in $HEARTH_GUESTS_CACHE
# (~/.cache/hearth/guests).
#
# The packages come by this machine's own apt, which knows what is installed here; `debian_unpack` takes named packages of
# another suite.
set -euo pipefail
# shellcheck source=deploy/debian.sh
. "$(dirname "$0")/../deploy/debian.sh"

fail() {
    echo "servers.sh: $*" >&2
    exit 1
}

# Fetches a package and what it lacks here into the new directory $work/new.
fetch() {
    local package=$1 deb packages
    if [ "$package" = postgresql ]; then
        package=$(apt-cache depends postgresql | awk '/Depends: postgresql-[0-9]+$/ { print $2; exit }')
    fi
    # (Simulated: apt tells what an installation would unpack.)
    missing() { apt-get --simulate --no-install-recommends install "$package" 2>"$work/log" | awk '$1 == "Inst" { print $2 }'; }
    mapfile -t packages < <(missing)
    [ ${#packages[@]} -gt 0 ] || {
        apt-get --quiet update >"$work/log" 2>&1 || true
        mapfile -t packages < <(missing)
    }
    # It is installed: then it is taken as it is, from the root.
    [ ${#packages[@]} -gt 0 ] || packages=("$package")
    mkdir -p "$work/deb" "$work/new"
    (cd "$work/deb" && apt-get --quiet download "${packages[@]}") >>"$work/log" 2>&1 || {
        apt-get --quiet update >>"$work/log" 2>&1 || true
        (cd "$work/deb" && apt-get --quiet download "${packages[@]}") >>"$work/log" 2>&1
    } || fail "$(cat "$work/log")"$'\n'"servers.sh: cannot fetch $package"
    for deb in "$work"/deb/*.deb; do
        dpkg -x "$deb" "$work/new"
    done
}

[ $# -gt 0 ] || {
    echo "usage: servers.sh PACKAGE..." >&2
    exit 2
}
cache=${HEARTH_GUESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/guests}/servers-$(. /etc/os-release && echo "$VERSION_ID")
mkdir -p "$cache"
for package; do
    made_once "$cache/$package" fetch "$package"
    echo "$cache/$package"
done

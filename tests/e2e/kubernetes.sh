#!/usr/bin/env bash
# Prints a directory with the programs of a Kubernetes: kube-apiserver, kube-controller-manager,
# kube-scheduler, kube-proxy, kubelet, kubectl, etcd, and a static busybox.
#
# The newest that builds from Debian is bookworm's 1.20.2: trixie's (1.32) and later source packages have
# kubectl alone. It is built with bookworm's Go, about 10 minutes on two cores, once: the result is kept in
# ${XDG_CACHE_HOME:-~/.cache}/hearth-e2e, under the versions it is made of. Packages are fetched by apt with
# lists of its own and unpacked beside it: none is installed, for Debian's etcd-server would start etcd.
#
# GOFLAGS is passed on (`GOFLAGS=-p=1` leaves a core to others).
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/debian.sh

suite=bookworm
# Raise it when this script makes something else of the same packages.
recipe=1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hearth-e2e

say() {
    echo "kubernetes: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

# What is fetched as it is; the version of the first two is part of the directory's name.
packages=(golang-1.19-go golang-1.19-src etcd-server kubernetes-client busybox-static)

# Builds into $1, in the directory $2, from what was downloaded into it.
build() {
    local out=$1 work=$2 source version
    mkdir -p "$work/root" "$out/bin"
    local deb
    for deb in "$work"/deb/*.deb; do
        dpkg -x "$deb" "$work/root"
    done
    cp "$work/root/usr/bin/"{etcd,kubectl} "$out/bin/"
    cp "$work/root/bin/busybox" "$out/bin/busybox"

    mkdir -p "$work/go/src/k8s.io"
    source=$work/go/src/k8s.io/kubernetes
    dpkg-source --no-check --extract "$work"/deb/kubernetes_*.dsc "$source" >&2
    version=$(dpkg-parsechangelog -l "$source/debian/changelog" -S Version)
    version=v$(sed 's/.*+really//; s/-.*//' <<<"$version")
    export GOROOT=$work/root/usr/lib/go-1.19 GOPATH=$work/go GOCACHE=$work/cache GO111MODULE=off CGO_ENABLED=0
    export PATH=$GOROOT/bin:$PATH
    cd "$source"
    # The version that the programs tell, without git.
    printf '%s\n' "KUBE_GIT_COMMIT=debian" "KUBE_GIT_TREE_STATE=archive" "KUBE_GIT_VERSION=$version" \
        "KUBE_GIT_MAJOR=1" "KUBE_GIT_MINOR=20" >"$work/version"
    local package=k8s.io/component-base/version flags
    flags="-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=20"
    say "generating code"
    make generated_files KUBE_GIT_VERSION_FILE="$work/version" >&2
    local program
    for program in kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy; do
        say "building $program"
        go build -ldflags "$flags" -o "$out/bin/$program" "./cmd/$program" >&2
    done
    "$out/bin/kubelet" --version >&2
}

versions() {
    debian_apt "$suite" show "${packages[@]}" 2>/dev/null |
        awk '/^Package: (golang-1.19-go|kubernetes-client)$/ { wanted = 1 } wanted && /^Version: / { print $2; wanted = 0 }'
}

mkdir -p "$cache"
exec {lock}>"$cache/lock"
flock "$lock"
# Complete ones only: they are moved here when they are done.
newest=$(find "$cache" -maxdepth 1 -name "kubernetes-*-r$recipe" -printf '%T@ %p\n' | sort -rn | sed -n '1s/^[^ ]* //p')
if [ -n "$newest" ]; then
    echo "$newest/bin"
    exit
fi

work=$cache/work
rm -rf -- "$work"
mkdir -p "$work/deb"
trap 'rm -rf -- "$work"' EXIT
debian_apt_open "$suite" "$work/apt" deb deb-src || fail "apt knows no mirror of Debian on this machine, or it cannot be reached (see above)"
say "fetching ${packages[*]} and the source of kubernetes, of Debian $suite"
(cd "$work/deb" && debian_apt "$work/apt" download "${packages[@]}" && debian_apt "$work/apt" source --download-only kubernetes) >&2 ||
    fail "cannot fetch them (see above)"

#!/usr/bin/env bash
# Prints a directory with the programs of a Kubernetes: kube-apiserver, kube-controller-manager,
# kube-scheduler, kube-proxy, kubelet, kubectl, etcd, and a static busybox.
#
# The newest that builds from Debian is bookworm's 1.20.2: the source packages of trixie (1.32) and later have kubectl
# alone. It is built with bookworm's Go, 10 to 20 minutes on two cores, once: the result is kept in
# ${XDG_CACHE_HOME:-~/.cache}/hearth-e2e, under a name with its version. Packages are fetched with lists of their own
# and unpacked there: none is installed (Debian's etcd-server would start etcd), and nothing of it comes into this
# repository. GOFLAGS is passed on: `GOFLAGS=-p=1` leaves a core to others.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/debian.sh

suite=bookworm
# The build below, of that version: raise it when it makes something else.
result=kubernetes-1.20.2-1
source_package=kubernetes
packages=(golang-1.19-go golang-1.19-src etcd-server kubernetes-client busybox-static)
programs=(kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy)

say() {
    echo "kubernetes: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

fetch() {
    mkdir -p "$work/deb"
    say "fetching the source of $source_package and ${packages[*]} of Debian $suite"
    {
        debian_lists "$work/apt" "$suite" deb deb-src &&
            cd "$work/deb" &&
            debian_apt "$work/apt" download "${packages[@]}" &&
            debian_apt "$work/apt" source --download-only "$source_package"
    } >"$work/log" 2>&1 || fail "$(cat "$work/log")"$'\n'"kubernetes: cannot fetch them"
}

# Runs a command whose output is shown only if it fails.
quietly() {
    "$@" >"$work/log" 2>&1 || fail "$(tail -n 100 "$work/log")"$'\n'"kubernetes: failed: $*"
}

build() {
    local deb program version flags package=k8s.io/kubernetes/vendor/k8s.io/component-base/version
    local root=$work/root tree=$work/go/src/k8s.io/kubernetes
    mkdir -p "$root" "$work/bin" "$work/go/src/k8s.io"
    for deb in "$work"/deb/*.deb; do
        dpkg -x "$deb" "$root"
    done
    cp "$root/usr/bin/"{etcd,kubectl} "$root/bin/busybox" "$work/bin/"
    quietly dpkg-source --no-check --extract "$work"/deb/"$source_package"_*.dsc "$tree"
    # 1.20.5+really1.20.2-1.1
    version=$(dpkg-parsechangelog -l "$tree/debian/changelog" -S Version | sed 's/.*really//; s/-.*//')
    [[ $result = "kubernetes-$version-"* ]] ||
        fail "Debian $suite has Kubernetes $version now: check this script with it, and change \`result\`"
    flags="-s -w -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=20"
    # (Its modules cannot be had; as a tree of packages with all it needs in vendor/ it builds.)
    export GOROOT=$root/usr/lib/go-1.19 GOPATH=$work/go GOCACHE=$work/cache GO111MODULE=off CGO_ENABLED=0
    export PATH=$GOROOT/bin:$PATH
    cd "$tree"
    say "generating code"
    quietly make generated_files
    for program in "${programs[@]}"; do
        say "building $program"
        quietly go build -ldflags "$flags" -o "$work/bin/$program" "./cmd/$program"
        "$work/bin/$program" --version >&2
    done
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/hearth-e2e
mkdir -p "$cache"
# One at a time: another checkout waits, and then finds it done.
exec {lock}>"$cache/lock"
flock "$lock"
if [ ! -d "$cache/$result" ]; then
    work=$cache/work
    rm -rf -- "$work"
    trap 'chmod -R u+w "$work" 2>/dev/null; rm -rf -- "$work"' EXIT
    fetch
    (build)
    mv "$work/bin" "$cache/$result"
fi
echo "$cache/$result"

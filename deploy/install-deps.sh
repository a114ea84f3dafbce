#!/usr/bin/env bash
# Installs, by Debian package name, what building and testing Hearth needs and is missing. It can be run
# again at any time; with nothing missing it changes nothing and needs neither root nor a network.
# More packages can be named as arguments.
set -euo pipefail

packages=(
    build-essential        # the linker and libc of the Rust build, libc for static native guests
    ca-certificates curl   # cargo; the demo's look at /metrics
    protobuf-compiler      # containerd's API
    containerd runc        # what the stories and the demo run on
    util-linux mount       # unshare, nsenter: a private machine for each story
    iproute2               # network namespaces
    containernetworking-plugins   # the network of the stories' pods
    nghttp2-client         # h2load, a client of HTTP/2
    openssl prometheus     # a certificate for the metrics endpoint; its scraper
    clang lld wasi-libc libclang-rt-dev-wasm32   # guests in C
    "$@"
)

# By program, as they often come from elsewhere than Debian: guests in JavaScript and in Python.
command -v npm >/dev/null || packages+=(nodejs npm)
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)

# The Rust that the workspace asks for (rust-version in Cargo.toml); Debian's is older.
rust_wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")

fail() {
    echo "install-deps: $*" >&2
    exit 1
}

installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_missing() {
    command -v dpkg-query >/dev/null ||
        fail "this is not a Debian system: install the like of ${packages[*]} by its own means"
    local missing=() package
    for package in "${packages[@]}"; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" -eq 0 ] ||
        fail "not root; run: apt-get install --no-install-recommends ${missing[*]}"
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install --yes --quiet --no-install-recommends
        -o DPkg::Lock::Timeout=120 "${missing[@]}")
    # A fresh machine has no package lists; elsewhere they may be too old for the mirror.
    apt-cache show "${missing[@]}" >/dev/null 2>&1 && "${install[@]}" && return
    { apt-get update --quiet && "${install[@]}"; } ||
        fail "apt-get cannot install ${missing[*]} (see above)"
}

check_rust() {
    command -v cargo >/dev/null ||
        fail "cargo is missing: install Rust $rust_wanted or later with rustup (https://rustup.rs)"
    local found
    found=$(rustc --version | cut -d ' ' -f 2)
    printf '%s\n' "$rust_wanted" "$found" | sort --version-sort --check=quiet ||
        fail "Rust $found is too old: install $rust_wanted or later, e.g. with \`rustup update stable\`"
}

install_missing
check_rust

#!/usr/bin/env bash
# Installs, by Debian package name, what `make e2e` needs and is missing. (Kubernetes itself is not installed:
# see kubernetes.sh.)
set -euo pipefail

packages=(
    dpkg-dev rsync jq make patch   # Kubernetes' source package, and its generators of code
    iptables conntrack             # kube-proxy calls them
    openssl                        # certificates
)
exec "$(dirname "$0")/../../deploy/install-deps.sh" "${packages[@]}"

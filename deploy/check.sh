#!/usr/bin/env bash
# Checks what goes onto a node, on private copies: nothing of this machine changes, and nothing is started.
#
#   check.sh [STEP...]   units, deb, tarball, manifests, systemd if none is named
#
# The .deb is installed, upgraded and purged in an overlay over this machine's root, or over the unpacked
# Debian that HEARTH_DEBIAN_ROOT names. A tool that is missing is installed; where it cannot be had, that is told
# loudly, and its check left out.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

fail() {
    echo "check: $*" >&2
    exit 1
}

missing() {
    echo "check: NOT CHECKED: $1 is missing${2:+ ($2)}" >&2
    return 1
}

# have PROGRAM PACKAGE: whether it is there, and if it is not, whether it can be installed.
have() {
    command -v "$1" >/dev/null && return
    deploy/install-deps.sh "$2" >&2 || true
    command -v "$1" >/dev/null || missing "$1" "the package $2"
}

# The package, and one of the next version, made once.
package= newer=
packages() {
    [ -z "$package" ] || return 0
    package=$(deploy/package.sh deb)
    newer=$work/newer.deb
    dpkg-deb --raw-extract "$package" "$work/newer"
    sed -i 's/^Version: .*/&+1/' "$work/newer/DEBIAN/control"
    dpkg-deb --root-owner-group -Znone --build "$work/newer" "$newer" >/dev/null
    rm -r "$work/newer"
}

# The units are right, and as exposed as the documentation says.
units() {
    have systemd-analyze systemd || return 0
    local unit score
    for unit in deploy/systemd/*; do
        sed "s|/usr/bin/|$(realpath "$target/release")/|" "$unit" >"$work/${unit##*/}"
    done
    # (A warning does not change its status.)
    systemd-analyze verify --man=no "$work/hearthd.service" "$work/hearthd.socket" >"$work/verify" 2>&1 ||
        fail "$(cat "$work/verify")"
    ! grep -F "$work" "$work/verify" >&2 || fail "systemd-analyze verify has something to say, see above"
    score=$(systemd-analyze security --offline=true --no-pager "$work/hearthd.service" 2>/dev/null |
        sed -n 's/.*exposure level for hearthd.service: \([0-9.]*\).*/\1/p')
    grep -qF "exposure level of $score" deploy/README.md ||
        fail "deploy/README.md does not tell the exposure level, which is $score"
    echo "check: the units are right; exposure level $score"
}

# What the scripts of the package have systemctl do, where systemd runs: a stand-in that writes it down.
systemctl_stub() {
    cat <<'EOF'
#!/bin/sh
echo "$*" >>/systemctl.log
for unit; do :; done
case "$*" in
*" preset "*)
    wants=/etc/systemd/system/$(sed -n 's/^WantedBy=//p' "/lib/systemd/system/$unit").wants
    mkdir -p "$wants"
    ln -sf "/lib/systemd/system/$unit" "$wants/$unit"
    ;;
*is-enabled*) echo enabled ;;
*is-active*) exit "$(cat /is-active 2>/dev/null || echo 3)" ;;
esac
EOF
}

# In a mount namespace: installs OLD, upgrades to NEW, removes, purges. $3 is the Debian below.
in_debian() {
    local old=$1 new=$2 below=$3 root
    mount -t tmpfs tmpfs /mnt
    mkdir -p /mnt/{upper,work,root}
    mount -t overlay -o "lowerdir=$below,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
    root=/mnt/root
    mkdir -p "$root"/{proc,run,dev}
    mount -t proc proc "$root/proc"
    mount -o remount,bind,ro "$root/proc" || true
    mount -t tmpfs tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/dev"
    mknod -m 666 "$root/dev/null" c 1 3
    cp "$old" "$root/run/old.deb"
    cp "$new" "$root/run/new.deb"
    export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
    dpkg_() {
        chroot "$root" dpkg --force-confold "$@" >/mnt/log 2>&1 || { cat /mnt/log >&2; fail "dpkg $*"; }
    }
    did() {
        grep -qE -- "(^| )$1\$" "$root/systemctl.log" || { cat "$root/systemctl.log" >&2; fail "systemctl was not told: $1"; }
    }
    # dpkg's own records are no concern of ours.
    left() {
        find /mnt/upper -not -type d -printf '/%P\n' |
            grep -vE '^/var/(lib/dpkg|log|cache/(man|ldconfig|debconf))/|^/(systemctl.log|is-active)$|^/usr/(bin/systemctl|sbin/policy-rc.d)$' || true
    }
    if chroot "$root" dpkg-query --show hearth >/dev/null 2>&1; then
        fail "$below has the package installed already"
    fi

    # Without systemd, as in an image.
    dpkg_ --install /run/old.deb
    chroot "$root" hearthd --check-config >/dev/null || fail "the installed hearthd does not like its configuration"
    chroot "$root" hearthctl --version >/dev/null || fail "the installed hearthctl does not start"
    chroot "$root" containerd-shim-hearth-v1 -v >/dev/null || fail "the installed shim does not start"
    [ -L "$root/etc/systemd/system/multi-user.target.wants/hearthd.service" ] || fail "hearthd.service is not enabled"
    [ -L "$root/etc/systemd/system/sockets.target.wants/hearthd.socket" ] || fail "hearthd.socket is not enabled"
    dpkg_ --purge hearth
    [ -z "$(left)" ] || fail "left after a purge:"$'\n'"$(left)"

    # With it.
    # (What keeps packages from starting anything in a container.)
    rm -f "$root/usr/sbin/policy-rc.d"
    mkdir -p "$root/run/systemd/system"
    systemctl_stub >"$root/usr/bin/systemctl.stub"
    chmod 0755 "$root/usr/bin/systemctl.stub"
    mv "$root/usr/bin/systemctl.stub" "$root/usr/bin/systemctl"
    dpkg_ --install /run/old.deb
    did "daemon-reload"
    did "start hearthd.socket hearthd.service"
    chroot "$root" hearthctl --version >/dev/null || fail "the installed hearthctl does not start"
    sed -i 's/^# pool_slots = .*/pool_slots = 7/' "$root/etc/hearth/config.toml"
    echo mine >"$root/etc/hearth/mine"
    mkdir -p "$root/var/lib/hearth" && echo x >"$root/var/lib/hearth/module"
    echo 0 >"$root/is-active"
    rm "$root/systemctl.log"
    dpkg_ --install /run/new.deb
    did "restart hearthd.service"
    ! grep -qE "(^| )(start|stop) " "$root/systemctl.log" || fail "an upgrade stopped the daemon, which ends pods"
    grep -q '^pool_slots = 7' "$root/etc/hearth/config.toml" || fail "an upgrade lost the configuration"
    # Disabled by the administrator, and upgraded: it stays disabled.
    rm "$root/etc/systemd/system/multi-user.target.wants/hearthd.service"
    dpkg_ --install /run/new.deb
    [ ! -e "$root/etc/systemd/system/multi-user.target.wants/hearthd.service" ] || fail "an upgrade enabled what was disabled"
    dpkg_ --remove hearth
    did "stop hearthd.socket hearthd.service"
    [ -e "$root/etc/hearth/config.toml" ] || fail "a removal took the configuration"
    dpkg_ --purge hearth
    [ "$(left)" = /etc/hearth/mine ] || fail "left after a purge, beside what is the user's:"$'\n'"$(left)"
    echo "check: the package was installed, upgraded and purged, and left nothing but what is the user's"
}

deb() {
    [ "$(id -u)" -eq 0 ] || fail "installing into a private root needs root"
    packages
    if have lintian lintian; then
        lintian --fail-on error,warning --allow-root "$package" || fail "lintian has something to say, see above"
        echo "check: lintian has nothing to say"
    fi
    export -f in_debian fail systemctl_stub
    unshare --mount --propagation private bash -euo pipefail -c 'in_debian "$@"' in_debian \
        "$package" "$newer" "${HEARTH_DEBIAN_ROOT:-/}"
}

# Whether a machine can be made that has a systemd of its own.
can_have_machine() {
    local probe=/sys/fs/cgroup/hearth-check-probe
    unshare --pid --mount --cgroup --uts --ipc --net --fork true 2>/dev/null ||
        missing "the right to make namespaces" || return
    { mkdir "$probe" && rmdir "$probe"; } 2>/dev/null || missing "a control group hierarchy that can be written to"
}

# A node's life, under a systemd of its own.
systemd() {
    local guests=$work/guests image=
    [ -x /lib/systemd/systemd ] || have systemd systemd || return 0
    can_have_machine || return 0
    packages
    mkdir "$guests"
    for guest in hello sleep await; do
        "$target/release/guest-image" "$guest" >"$guests/$guest.tar"
    done
    ! have busybox busybox-static || image=$(deploy/image.sh)
    deploy/check-systemd.sh "$package" "$newer" "$guests" ${image:+"$image"}
}

tarball() {
    local archive root=$work/root unpacked=$work/unpacked left
    archive=$(deploy/package.sh tarball)
    mkdir -p "$unpacked" "$root"
    tar -C "$unpacked" --strip-components=1 -xzf "$archive"
    tests/docs.sh --links "$unpacked/share/doc/hearth" || fail "the pages of the package refer to what it does not have"
    for prefix in /usr/local /opt/hearth; do
        "$unpacked/install.sh" --root "$root" --prefix "$prefix" >/dev/null
        "$root$prefix/bin/hearthd" --check-config --config "$root/etc/hearth/config.toml" >/dev/null
        "$root$prefix/bin/hearthctl" completion bash | cmp - "$root$prefix/share/bash-completion/completions/hearthctl"
        grep -q "^ExecStart=$prefix/bin/hearthd --replace --anchor %n$" "$root/etc/systemd/system/hearthd.service" ||
            fail "the unit does not start what was installed"
        # An upgrade keeps the configuration, and takes away what the release does not have any more.
        echo '# mine' >>"$root/etc/hearth/config.toml"
        echo "$prefix/share/hearth/of-old" >>"$root$prefix/share/hearth/installed-files"
        touch "$root$prefix/share/hearth/of-old"
        "$unpacked/install.sh" --root "$root" --prefix "$prefix" >/dev/null
        grep -q '^# mine' "$root/etc/hearth/config.toml" || fail "an upgrade lost the configuration"
        [ ! -e "$root$prefix/share/hearth/of-old" ] || fail "an upgrade left an old file"
        "$unpacked/install.sh" --root "$root" --prefix "$prefix" --uninstall >/dev/null
        left=$(cd "$root" && find . -not -type d)
        [ "$left" = ./etc/hearth/config.toml ] || fail "left after an uninstallation:"$'\n'"$left"
        rm "$root/etc/hearth/config.toml"
        "$unpacked/install.sh" --root "$root" --prefix "$prefix" >/dev/null
        "$unpacked/install.sh" --root "$root" --prefix "$prefix" --uninstall >/dev/null
        left=$(cd "$root" && find . -not -type d)
        [ -z "$left" ] || fail "left after an uninstallation:"$'\n'"$left"
    done
    echo "check: the tarball was installed, upgraded and uninstalled, and left nothing but a changed configuration"
}

# Where kubernetes-validate is: named, installed, or put below the target directory by pip.
validator() {
    local named=${KUBERNETES_VALIDATE:-kubernetes-validate} own=$target/kubernetes-validate
    command -v "$named" && return
    [ -x "$own/bin/kubernetes-validate" ] || {
        python3 -m venv "$own" && "$own/bin/pip" install --quiet kubernetes-validate
    } >&2 || missing kubernetes-validate "pip cannot install it; KUBERNETES_VALIDATE names one" || return
    echo "$own/bin/kubernetes-validate"
}

# Against the OpenAPI schema of Kubernetes.
manifests() {
    local tool file
    tool=$(validator) || return 0
    for file in deploy/kubernetes/runtimeclass.yaml deploy/kubernetes/examples/*.yaml \
        deploy/kubernetes/installer/{namespace,rbac,daemonset}.yaml; do
        "$tool" --strict "$file" >"$work/said" 2>&1 || fail "$(cat "$work/said")"
    done
    # It does find what is wrong.
    sed 's/handler:/handle:/' deploy/kubernetes/runtimeclass.yaml >"$work/wrong.yaml"
    ! "$tool" --strict "$work/wrong.yaml" >/dev/null 2>&1 || fail "$tool takes a RuntimeClass without a handler for right"
    echo "check: the manifests are right by the schema of Kubernetes"
}

[ $# -gt 0 ] || set -- units deb tarball manifests systemd
for step in "$@"; do
    case $step in
    units | deb | systemd | tarball | manifests) "$step" ;;
    *) fail "unknown step $step: say units, deb, tarball, manifests or systemd" ;;
    esac
done

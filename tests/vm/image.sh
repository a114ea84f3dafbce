#!/usr/bin/env bash
# Makes the disk of a virtual machine, and prints the directory with `disk.img`, `vmlinuz` and `initrd` (root, once, about
# four minutes): Debian 12 with systemd, its containerd, runc, AppArmor and cloud kernel, as a node has them. Hearth is not
# on it. It is kept in $HEARTH_VM_CACHE (~/.cache/hearth/vm), under a name with the digest of this file and of the agent.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
suite=bookworm
size=3G
packages=systemd,systemd-sysv,dbus,udev,kmod,containerd,runc,apparmor,iproute2,procps,util-linux,linux-image-cloud-amd64
# What the initial file system needs to find the disk.
modules=(virtio_pci virtio_blk ext4)

cache=${HEARTH_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hearth/vm}
result=$cache/$suite-$(cat "$here/image.sh" "$here/agent" | sha256sum | cut -c -16)
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ -e "$result/disk.img" ]; then
    echo "$result"
    exit
fi
. "$here/../../deploy/debian.sh"
read -r mirror component < <(debian_mirror)
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
root=$work/root
echo "vm: making Debian $suite, once" >&2
# Mounts of debootstrap's own stay in a namespace of its own.
unshare --mount --propagation private debootstrap --variant=minbase --components="$component" --include="$packages" \
    "$suite" "$root" "$mirror" >"$work/log" 2>&1 || {
    tail -n 20 "$work/log" "$root/debootstrap/debootstrap.log" >&2 || true
    echo "vm: debootstrap failed" >&2
    exit 1
}
rm -rf -- "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*

# The agent runs the scripts of the stories.
install -m 0755 "$here/agent" "$root/usr/local/sbin/agent"
cat >"$root/etc/systemd/system/agent.service" <<'END'
[Service]
ExecStart=/usr/local/sbin/agent
StandardOutput=journal+console
Restart=always
[Install]
WantedBy=multi-user.target
END
mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/check"
ln -s ../agent.service "$root/etc/systemd/system/multi-user.target.wants/agent.service"
ln -s /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
echo node >"$root/etc/hostname"
# CRI copies them for pods.
echo '127.0.0.1 localhost node' >"$root/etc/hosts"
echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
printf '/dev/vda / ext4 rw 0 1\n/dev/vdb /check ext4 ro 0 0\n' >"$root/etc/fstab"
# There is no registry: the image of the pause container is imported.
mkdir -p "$root/etc/containerd"
printf 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "hearth.test/pause:1"\n' \
    >"$root/etc/containerd/config.toml"

mkdir -p "$work/result" "$work/initial/bin" "$work/initial/modules" "$work/initial"/{dev,proc,sys,root}
kernel=$(basename "$root"/lib/modules/*)
cp "$root/boot/vmlinuz-$kernel" "$work/result/vmlinuz"
cp "$(command -v busybox)" "$work/initial/bin/busybox"
modprobe --dirname "$root" --set-version "$kernel" --show-depends --all "${modules[@]}" |
    awk '$1 == "insmod" { print $2 }' | awk '!seen[$0]++' >"$work/modules"
while read -r module; do cp "$module" "$work/initial/modules/"; done <"$work/modules"
{
    echo '#!/bin/busybox sh'
    echo 'busybox mount -t devtmpfs dev /dev; busybox mount -t proc proc /proc; busybox mount -t sysfs sys /sys'
    sed 's|.*/|busybox insmod /modules/|' "$work/modules"
    echo 'while [ ! -b /dev/vda ]; do busybox sleep 0.1; done'
    echo 'busybox mount -t ext4 /dev/vda /root && busybox mount --move /dev /root/dev'
    echo 'busybox umount /proc /sys; exec busybox switch_root /root /lib/systemd/systemd'
} >"$work/initial/init"
chmod 0755 "$work/initial/init"
(cd "$work/initial" && find . | cpio --quiet --create --format=newc | gzip -1) >"$work/result/initrd"
truncate --size "$size" "$work/result/disk.img"
mke2fs -q -t ext4 -d "$root" "$work/result/disk.img"
mv -T "$work/result" "$result"
echo "$result"

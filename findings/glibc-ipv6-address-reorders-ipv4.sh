#!/usr/bin/env bash
# glibc 2.36 (Debian libc6 and libc-bin 2.36-9+deb12u14), order of the addresses of getaddrinfo(3).
#
# Behaviour: the order in which the IPv4 addresses of a name are returned depends on whether any interface has any IPv6
# address but ::1, even if only IPv4 addresses are asked for, known and reachable. With one, rule 9 of RFC 3484 (longest
# matching prefix) sorts the addresses of the host's own subnet to the front; without one, the order is that of the
# answer. A link-local address is enough. So a cluster that turns on IPv6 ends the round robin of name servers between
# pods of one node's subnet, and hosts with and without IPv6 choose different servers.
# (Interfaces' prefix lengths are only kept if an IPv6 address has been seen; without, each subnet is taken as a /32.)
#
# Output seen:
#   IPv4 only: 10.9.0.1 10.0.0.200 10.0.0.4
#   with fe80::5: 10.0.0.4 10.0.0.200 10.9.0.1
#
# Needs: root (a network of its own), ip, apt-get of Debian 12 amd64. Leaves nothing behind.
set -euo pipefail

libc=2.36-9+deb12u14

if [[ ${1:-} != inside ]]; then
	place=$(mktemp -d)
	trap 'rm -rf "$place"' EXIT
	(
		cd "$place"
		apt-get -qq -o APT::Sandbox::User=root download "libc6=$libc" "libc-bin=$libc"
		for package in *.deb; do dpkg -x "$package" libc; done
	)
	mkdir "$place/etc"
	unshare --mount --net bash "$0" inside "$place"
	exit
fi

place=$2
lib=$place/libc/lib/x86_64-linux-gnu
ip link set lo up
ip link add eth0 type veth peer name peer
for link in eth0 peer; do
	ip link set "$link" addrgenmode none
	ip link set "$link" up
done
ip address add 10.0.0.5/24 dev eth0
ip route add default dev eth0
echo 'hosts: files' >"$place/etc/nsswitch.conf"
echo 'multi on' >"$place/etc/host.conf"
printf '%s service\n' 10.9.0.1 10.0.0.200 10.0.0.4 >"$place/etc/hosts"
mount --bind "$place/etc" /etc

look_up() {
	"$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$place/libc/usr/bin/getent" ahostsv4 service |
		sed -n 's/ *STREAM.*//p' | xargs
}

seen=$(
	echo "IPv4 only: $(look_up)"
	ip address add fe80::5/64 dev eth0 nodad
	echo "with fe80::5: $(look_up)"
)
echo "$seen"
diff <(grep -A2 '^# Output seen:' "$0" | sed -n 's/^#   //p') <(echo "$seen") || {
	echo "glibc does something else now" >&2
	exit 1
}

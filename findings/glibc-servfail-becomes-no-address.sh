#!/usr/bin/env bash
# glibc 2.36 (Debian libc6 2.36-9+deb12u14), getaddrinfo(3) for a name that has only an IPv4 address.
#
# Behaviour: glibc asks for A and AAAA at once. When the first name server answers the A question with SERVFAIL (it
# cannot tell now) and the AAAA question with an empty answer (right for such a name), then
#   * the second name server of resolv.conf is not asked, nor is the first one again ("attempts" does not count), and
#   * getaddrinfo returns EAI_NODATA, "No address associated with hostname", a lasting error, not EAI_AGAIN.
# With "options single-request" the same servers give the address: SERVFAIL is then a reason to ask the second one.
# SERVFAIL for both questions is one, too.
#
# Output seen:
#   plain: error -5 (No address associated with hostname), asked: 1 A, 1 AAAA
#   single-request: 10.0.0.2, asked: 1 A, 2 A, 2 AAAA
#   plain, SERVFAIL for both: 10.0.0.2, asked: 1 A, 1 AAAA, 2 A, 2 AAAA
#
# Needs: root (a network of its own, port 53), python3 with pip, ip, apt-get of Debian 12 amd64. Leaves nothing behind.
set -euo pipefail

libc=2.36-9+deb12u14
dnslib=0.9.26

if [[ ${1:-} != inside ]]; then
	place=$(mktemp -d)
	trap 'rm -rf "$place"' EXIT
	(cd "$place" && apt-get -qq -o APT::Sandbox::User=root download "libc6=$libc" && dpkg -x libc6_*.deb libc)
	python3 -m pip --disable-pip-version-check install --quiet --root-user-action=ignore --target "$place/python" "dnslib==$dnslib"
	mkdir "$place/etc"
	unshare --mount --net bash "$0" inside "$place"
	exit
fi

place=$2
python=$(python3 -c 'import sys; print(sys.executable)')
lib=$place/libc/lib/x86_64-linux-gnu
ip link set lo up
echo 'hosts: dns' >"$place/etc/nsswitch.conf"
mount --bind "$place/etc" /etc

cat >"$place/servers.py" <<'PYTHON'
import socket, sys, threading
from dnslib import A, DNSRecord, QTYPE, RCODE, RR

def serve(number, ready):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.5%d" % number, 53))
    ready.release()
    while True:
        packet, source = sock.recvfrom(512)
        question = DNSRecord.parse(packet)
        kind = QTYPE[question.q.qtype]
        print(number, kind, flush=True, file=open(sys.argv[1], "a"))
        reply = question.reply()
        if number == 1 and (kind == "A" or "both" in str(question.q.qname)):
            reply.header.rcode = RCODE.SERVFAIL
        elif number == 2 and kind == "A":
            reply.add_answer(RR(question.q.qname, QTYPE.A, rdata=A("10.0.0.2")))
        sock.sendto(reply.pack(), source)

ready = threading.Semaphore(0)
for number in (1, 2):
    threading.Thread(target=serve, args=(number, ready)).start()
for _ in (1, 2):
    ready.acquire()
print("ready", flush=True)
PYTHON
coproc servers { PYTHONPATH=$place/python exec "$python" "$place/servers.py" "$place/log"; }
trap 'kill "$servers_PID"' EXIT
read -r -u "${servers[0]}" _

# What is found for a name, and which server was asked what.
look_up() {
	printf 'nameserver 127.0.0.51\nnameserver 127.0.0.52\noptions attempts:2 %s\n' "$2" >/etc/resolv.conf
	: >"$place/log"
	"$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$python" - "$1" <<'PYTHON'
import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)
    print(*(address[4][0] for address in found), end="")
except socket.gaierror as error:
    print("error %d (%s)" % error.args, end="")
PYTHON
	echo ", asked: $(paste -sd, "$place/log" | sed 's/,/, /g')"
}

seen=$(
	echo "plain: $(look_up web.test '')"
	echo "single-request: $(look_up web.test single-request)"
	echo "plain, SERVFAIL for both: $(look_up both.test '')"
)
echo "$seen"
diff <(grep -A3 '^# Output seen:' "$0" | sed -n 's/^#   //p') <(echo "$seen") || {
	echo "glibc does something else now" >&2
	exit 1
}

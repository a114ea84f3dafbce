#!/usr/bin/env bash
# grpcio 1.85.3 (PyPI), client on a Unix socket; the server is hyper with h2, the HTTP/2 of Rust, in granian 2.8.9 (PyPI).
#
# Behaviour: grpcio makes the :authority of a request from the path of the socket, each slash as %2F. hyper takes no percent
# sign in an authority and resets the stream with PROTOCOL_ERROR: every call is INTERNAL, and the server's program sees no
# request. The same socket works by a relative path without a slash, or with another authority. RFC 3986 allows the
# percent encoding in the host of an authority.
#
# Output seen:
#   absolute path: INTERNAL, requests seen by the server: none
#   relative path of one name: NOT_FOUND, requests seen by the server: host socket
#   relative path with a slash: INTERNAL, requests seen by the server: none
#   absolute path, grpc.default_authority localhost: NOT_FOUND, requests seen by the server: host localhost
#
# Needs: python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

grpcio=1.85.3
granian=2.8.9

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "grpcio==$grpcio" "granian==$granian"
# Answers every call with NOT_FOUND and the request's host as its text.
cat >program.py <<'END'
async def answer(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"5"),
        (b"grpc-message", b"host " + dict(scope["headers"])[b"host"]),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
END
cat >run.py <<'END'
import os, signal, subprocess
import grpc

server = subprocess.Popen(
    ["venv/bin/granian", "--interface", "asgi", "--http", "2", "--no-ws", "--uds", "socket", "program:answer"],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
)
try:
    for line in server.stdout:
        if "Started worker" in line:
            break
    for name, target, options in (
        ("absolute path", os.path.abspath("socket"), []),
        ("relative path of one name", "socket", []),
        ("relative path with a slash", "./socket", []),
        (
            "absolute path, grpc.default_authority localhost",
            os.path.abspath("socket"),
            [("grpc.default_authority", "localhost")],
        ),
    ):
        with grpc.insecure_channel("unix:" + target, options=options) as channel:
            try:
                channel.unary_unary("/findings/answer")(b"", timeout=20, wait_for_ready=True)
            except grpc.RpcError as error:
                host = error.details() if error.details().startswith("host ") else "none"
                print(f"{name}: {error.code().name}, requests seen by the server: {host}")
finally:
    server.send_signal(signal.SIGTERM)
    server.communicate()
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "grpcio or hyper does something else now" >&2
	exit 1
}

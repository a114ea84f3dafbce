#!/usr/bin/env bash
# grpcio 1.85.3 (PyPI), client, timeouts of calls (grpc-timeout); the server that notes them uses h2 4.4.1 (PyPI).
#
# Behaviour: the server does not get the timeout of the program. It is rounded up by as much as 1 %, so the server works on
# after the client has given up: 3 minutes for a timeout of 28 hours. No more than 27000 hours (three years) are sent. A
# timeout that reaches beyond the year 2262 (2^63 nanoseconds after 1970) counts as passed: the call ends at once with
# DEADLINE_EXCEEDED, and no request is sent. threading.TIMEOUT_MAX, the longest timeout of Python itself, is such a one.
#
# Output seen (timeout in seconds: what the server gets):
#   10.02: 10100m
#   100.5: 101S
#   1000.5: 1010S
#   7205: 7210S
#   100001: 1670M
#   100000000: 27000H
#   3000000000: 27000H
#   threading.TIMEOUT_MAX: no request, DEADLINE_EXCEEDED
#
# Needs: python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

grpcio=1.85.3
h2=4.4.1

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "grpcio==$grpcio" "h2==$h2"
cat >run.py <<'END'
import socket, threading
import grpc
import h2.config, h2.connection, h2.events

listener = socket.create_server(("127.0.0.1", 0))
seen = []


def serve():
    client = listener.accept()[0]
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    connection.initiate_connection()
    client.sendall(connection.data_to_send())
    while data := client.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                seen.append(dict(event.headers)["grpc-timeout"])
            elif isinstance(event, h2.events.StreamEnded):
                connection.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                # One message, which is empty.
                connection.send_data(event.stream_id, bytes(5))
                connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        client.sendall(connection.data_to_send())


threading.Thread(target=serve, daemon=True).start()
with grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel:
    call = channel.unary_unary("/findings/answer")
    call(b"", timeout=20)
    for timeout in 10.02, 100.5, 1000.5, 7205, 100001, 10**8, 3 * 10**9, threading.TIMEOUT_MAX:
        name = "threading.TIMEOUT_MAX" if timeout == threading.TIMEOUT_MAX else timeout
        seen.clear()
        try:
            call(b"", timeout=timeout)
            print(f"{name}:", *seen)
        except grpc.RpcError as error:
            print(f"{name}:", *(seen or ["no request,"]), error.code().name)
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "grpcio does something else now" >&2
	exit 1
}

#!/usr/bin/env bash
# grpcio 1.85.3 (PyPI), client and server, a client whose idea of a method's cardinality is not the server's.
#
# Behaviour: gRPC has the client end a call of one response with UNIMPLEMENTED when there is none. The client of grpcio returns
# None with the status OK, to a program that expects a message. It happens when a method has become a stream of responses on
# the server, and on any response of status OK without a message. The server does not check the other direction either: of two
# requests to a method that takes one it answers the first and drops the second, with OK. Only no request at all is refused.
#
# Output seen:
#   client expects one response, server streams none: OK, None
#   client expects one response, server streams one: OK, b'first'
#   client streams no request, server takes one: UNIMPLEMENTED
#   client streams two requests, server takes one: OK, b'first'
#
# Needs: python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

grpcio=1.85.3

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "grpcio==$grpcio"
cat >run.py <<'END'
from concurrent import futures
import grpc


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/findings/none": grpc.unary_stream_rpc_method_handler(lambda request, context: iter([])),
            "/findings/one": grpc.unary_stream_rpc_method_handler(lambda request, context: iter([request])),
            "/findings/unary": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        }[details.method]


server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Handler()])
port = server.add_insecure_port("127.0.0.1:0")
server.start()


def outcome(method, request):
    try:
        response, call = method.with_call(request, timeout=20)
    except grpc.RpcError as error:
        return error.code().name
    return f"{call.code().name}, {response}"


with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    for number in "none", "one":
        method = channel.unary_unary(f"/findings/{number}")
        print(f"client expects one response, server streams {number}:", outcome(method, b"first"))
    method = channel.stream_unary("/findings/unary")
    for number, requests in ("no request", []), ("two requests", [b"first", b"second"]):
        print(f"client streams {number}, server takes one:", outcome(method, iter(requests)))
server.stop(None)
END
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "grpcio does something else now" >&2
	exit 1
}

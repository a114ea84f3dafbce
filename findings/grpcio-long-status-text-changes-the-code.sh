#!/usr/bin/env bash
# grpcio 1.85.3 (PyPI), client and server, an error with a long text (grpc-message).
#
# Behaviour: the client takes no more than 16 KiB of trailers (the name, the value and 32 bytes for each field). A status with
# a longer text arrives as RESOURCE_EXHAUSTED: the code of the server is lost as well as its text, and a client that retries
# or gives up by the code does the wrong thing. Between 8 KiB and 16 KiB it is chance: the same answer of the server has its
# own code in one call and RESOURCE_EXHAUSTED in the next, with a probability that grows with the size.
#
# Output seen (the codes of 300 calls that the server answers with NOT_FOUND and a text of so many bytes):
#   8000: NOT_FOUND
#   12000: NOT_FOUND, RESOURCE_EXHAUSTED
#   16400: RESOURCE_EXHAUSTED
#   12000, client with grpc.max_metadata_size 12288: NOT_FOUND
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

CALLS = 300


def answer(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "x" * int(request))


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(answer)


server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Handler()])
port = server.add_insecure_port("127.0.0.1:0")
server.start()


def codes(size, options=()):
    seen = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.unary_unary("/findings/answer")
        for _ in range(CALLS):
            try:
                call(str(size).encode())
            except grpc.RpcError as error:
                seen.add(error.code().name)
    return ", ".join(sorted(seen))


for size in 8000, 12000, 16400:
    print(f"{size}:", codes(size))
print("12000, client with grpc.max_metadata_size 12288:", codes(12000, [("grpc.max_metadata_size", 12288)]))
server.stop(None)
END
seen=$(venv/bin/python run.py 2>/dev/null)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "grpcio does something else now" >&2
	exit 1
}

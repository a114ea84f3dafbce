"""gRPC by grpcio, without generated code: messages are bytes.

grpc_peer.py check AUTHORITY [CA]   asks for the health of a server; prints SERVING or the error's code
grpc_peer.py chat AUTHORITY COUNT   sends so many messages on one call, each after the answer to the one before; prints their
                               number and the trailing metadata
grpc_peer.py fail AUTHORITY         calls a method that fails; prints the error's code
grpc_peer.py serve [CERT KEY]       prints the port of a server that answers every call with its message, until stdin ends;
                               for each call it prints `called` and the metadata `traceparent`, if there is one

With CA, a file, the client speaks TLS and trusts that authority. With CERT and KEY, the server speaks TLS.
"""

import queue
import sys
from concurrent import futures

import grpc

# grpc.health.v1.HealthCheckResponse with the status SERVING.
SERVING = b"\x08\x01"
TIMEOUT_SECONDS = 20


def same(message):
    return message


def channel(authority, ca):
    if ca is None:
        return grpc.insecure_channel(authority)
    with open(ca, "rb") as file:
        return grpc.secure_channel(authority, grpc.ssl_channel_credentials(file.read()))


def check(authority, ca=None):
    with channel(authority, ca) as connection:
        call = connection.unary_unary("/grpc.health.v1.Health/Check", same, same)
        print("SERVING" if call(b"", timeout=TIMEOUT_SECONDS) == SERVING else "another status")


def chat(authority, count):
    with channel(authority, None) as connection:
        answers = futures.ThreadPoolExecutor(1)
        more = queue.Queue()
        call = connection.stream_stream("/hearth.test.Echo/Chat", same, same)(
            iter(more.get, None), timeout=TIMEOUT_SECONDS
        )
        for number in range(int(count)):
            more.put(b"%d" % number)
            assert answers.submit(next, call).result() == b"%d" % number
        more.put(None)
        assert next(call, None) is None
        print(count, dict(call.trailing_metadata())["x-trailer"])


def fail(authority):
    with channel(authority, None) as connection:
        connection.unary_unary("/hearth.test.Echo/Fail", same, same)(b"", timeout=TIMEOUT_SECONDS)


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        traceparent = dict(details.invocation_metadata).get("traceparent", "")
        print("called", traceparent, flush=True)

        def answer(message, context):
            context.set_trailing_metadata((("x-trailer", "the end"),))
            return message

        return grpc.unary_unary_rpc_method_handler(answer, same, same)


def serve(certificate=None, key=None):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Echo(),))
    if certificate is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        with open(key, "rb") as key_file, open(certificate, "rb") as certificate_file:
            pair = (key_file.read(), certificate_file.read())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    print("port", port, flush=True)
    sys.stdin.read()
    server.stop(None).wait()


try:
    {"check": check, "chat": chat, "fail": fail, "serve": serve}[sys.argv[1]](*sys.argv[2:])
except grpc.RpcError as error:
    print(error.code().name)

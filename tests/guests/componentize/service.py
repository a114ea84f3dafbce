"""An HTTP service of WASI 0.2, as componentize-py makes one.

/fetch?URL  the status and body that the URL gives
any other   a greeting
"""
import platform
from urllib.parse import urlsplit

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import outgoing_handler
from wit_world.imports.types import (
    Fields,
    IncomingRequest,
    OutgoingBody,
    OutgoingRequest,
    OutgoingResponse,
    ResponseOutparam,
    Scheme_Http,
    Scheme_Https,
)

PIECE = 64 << 10
# The bytes that one call of blocking_write_and_flush takes at most.
WRITTEN = 4096


def read(body):
    """The bytes of an incoming body."""
    content = bytearray()
    with body.stream() as stream:
        while True:
            try:
                content += stream.blocking_read(PIECE)
            except Err:  # the end
                return bytes(content)


def fetch(url):
    parts = urlsplit(url)
    request = OutgoingRequest(Fields())
    request.set_scheme(Scheme_Https() if parts.scheme == "https" else Scheme_Http())
    request.set_authority(parts.netloc)
    request.set_path_with_query(parts.path or "/")
    try:
        future = outgoing_handler.handle(request, None)
        with future.subscribe() as ready:
            ready.block()
        answer = future.get().value.value
    except Err as error:
        return 502, f"{error.value}\n".encode()
    if not hasattr(answer, "consume"):
        return 502, f"{answer}\n".encode()
    with answer.consume() as body:
        return answer.status(), read(body)


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        path = request.path_with_query() or "/"
        if path.startswith("/fetch?"):
            status, text = fetch(path.removeprefix("/fetch?"))
        else:
            status, text = 200, f"hello from Python {platform.python_version()}: {path}\n".encode()
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain"), ("content-length", str(len(text)).encode())]))
        response.set_status_code(status)
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as output:
            for at in range(0, len(text), WRITTEN):
                output.blocking_write_and_flush(text[at : at + WRITTEN])
        OutgoingBody.finish(body, None)

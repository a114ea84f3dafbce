"""An HTTP service of WASI 0.2, as componentize-py makes one."""
import platform

from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        path = request.path_with_query() or "/"
        text = f"hello from Python {platform.python_version()}: {path}\n".encode()
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain"), ("content-length", str(len(text)).encode())]))
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as output:
            output.blocking_write_and_flush(text)
        OutgoingBody.finish(body, None)

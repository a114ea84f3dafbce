"""An HTTP service of WASI 0.3, as componentize-py makes one: async, and many requests in one instance.

/           a greeting, the number of requests that this instance has had
/mirror     the body, piece by piece
/fetch?URL  what the URL gives
/slow       answers after 200 ms
"""
from urllib.parse import urlsplit

import componentize_py_async_support
import wit_world
from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import client, monotonic_clock
from wit_world.imports.wasi_http_types import Fields, Request, Response, Scheme_Http, Scheme_Https

PIECE = 64 << 10
requests = 0


def no_trailers():
    return wit_world.result_option_wasi_http_types_fields_wasi_http_types_error_code_future(lambda: Ok(None))[1]


def all_read():
    return wit_world.result_unit_wasi_http_types_error_code_future(lambda: Ok(None))[1]


def respond(status, body):
    """A response whose body the coroutine function `body` writes; it goes on after the response's head."""
    writer, reader = wit_world.byte_stream()

    async def write():
        with writer:
            await body(writer)

    response = Response.new(Fields.from_list([("content-type", b"text/plain")]), reader, no_trailers())[0]
    response.set_status_code(status)
    componentize_py_async_support.spawn(write())
    return response


def say(status, text):
    async def body(writer):
        await writer.write_all(text.encode())

    return respond(status, body)


async def copy(reader, writer):
    with reader:
        while not reader.writer_dropped:
            if await writer.write_all(await reader.read(PIECE)) == 0 and writer.reader_dropped:
                break


async def fetch(url):
    parts = urlsplit(url)
    request = Request.new(Fields(), None, no_trailers(), None)[0]
    request.set_scheme(Scheme_Https() if parts.scheme == "https" else Scheme_Http())
    request.set_authority(parts.netloc)
    request.set_path_with_query(parts.path or "/")
    try:
        response = await client.send(request)
    except Err as error:
        return say(502, f"{error.value}\n")
    status = response.get_status_code()
    body = Response.consume_body(response, all_read())[0]
    return respond(status, lambda writer: copy(body, writer))


class Handler(exports.Handler):
    async def handle(self, request):
        global requests
        requests += 1
        path, _, query = (request.get_path_with_query() or "/").partition("?")
        if path == "/":
            return say(200, f"hello from Python, request {requests}\n")
        if path == "/mirror":
            body = Request.consume_body(request, all_read())[0]
            return respond(200, lambda writer: copy(body, writer))
        if path == "/fetch":
            return await fetch(query)
        if path == "/slow":
            await monotonic_clock.wait_for(200_000_000)
            return say(200, "slow\n")
        return say(404, "no such path\n")

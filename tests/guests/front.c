/* An HTTP service that calls others, by wasi:http itself.
 *
 *   /call/AUTHORITY/PATH   GET http://AUTHORITY/PATH: the status of the answer and its body, or `error NUMBER`, the
 *                          place of the error's code among those of wasi:http
 *   anything else          `front`, and its path
 *
 * The imports are written as the component model's canonical ABI has them; see http.wit for the types.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "component.h"

#define TYPES "wasi:http/types@0.2.0"
#define STREAMS "wasi:io/streams@0.2.0"

IMPORT(TYPES, "[method]incoming-request.path-with-query") void request_path(handle, void *result);
IMPORT(TYPES, "[constructor]fields") handle new_fields(void);
IMPORT(TYPES, "[constructor]outgoing-response") handle new_response(handle fields);
IMPORT(TYPES, "[method]outgoing-response.body") void response_body(handle, void *result);
IMPORT(TYPES, "[static]response-outparam.set")
void set_response(handle out, int32_t failed, int32_t, int32_t, int64_t, int32_t, int32_t, int32_t, int32_t);
IMPORT(TYPES, "[method]outgoing-body.write") void body_output(handle, void *result);
IMPORT(TYPES, "[static]outgoing-body.finish") void finish_body(handle, int32_t has_trailers, handle, void *result);
IMPORT(TYPES, "[constructor]outgoing-request") handle new_request(handle fields);
IMPORT(TYPES, "[method]outgoing-request.set-scheme")
int32_t set_scheme(handle, int32_t some, int32_t which, const char *, size_t);
IMPORT(TYPES, "[method]outgoing-request.set-authority") int32_t set_authority(handle, int32_t some, const char *, size_t);
IMPORT(TYPES, "[method]outgoing-request.set-path-with-query") int32_t set_path(handle, int32_t some, const char *, size_t);
IMPORT("wasi:http/outgoing-handler@0.2.0", "handle") void send_out(handle request, int32_t some, handle options, void *result);
IMPORT(TYPES, "[method]future-incoming-response.subscribe") handle subscribe(handle);
IMPORT(TYPES, "[method]future-incoming-response.get") void get_response(handle, void *result);
IMPORT(TYPES, "[method]incoming-response.status") int32_t response_status(handle);
IMPORT(TYPES, "[method]incoming-response.consume") void incoming_body(handle, void *result);
IMPORT(TYPES, "[method]incoming-body.stream") void body_input(handle, void *result);
IMPORT(STREAMS, "[method]input-stream.blocking-read") void read_some(handle, int64_t, void *result);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush") void write_all(handle, const char *, size_t, void *result);
IMPORT(STREAMS, "[resource-drop]output-stream") void drop_output(handle);
IMPORT("wasi:io/poll@0.2.0", "[method]pollable.block") void block(handle);
IMPORT("wasi:io/poll@0.2.0", "[resource-drop]pollable") void drop_pollable(handle);

static char answer[1 << 16];
static size_t length;

static handle made(const int32_t *result) {
    if (result[0] & 0xff)
        __builtin_trap();
    return result[1];
}

static void add(const char *bytes, size_t count) {
    if (count > sizeof answer - length)
        count = sizeof answer - length;
    memcpy(answer + length, bytes, count);
    length += count;
}

static void failed(const uint8_t *code) {
    char line[32];
    add(line, (size_t)snprintf(line, sizeof line, "error %d\n", *code));
}

/* `to` is an authority, and the path behind it. */
static void call(const char *to, size_t size) {
    _Alignas(8) uint8_t result[96];
    const char *path = memchr(to, '/', size);
    size_t host = path ? (size_t)(path - to) : size;
    handle request = new_request(new_fields());
    set_scheme(request, 1, 0, 0, 0);
    if (set_authority(request, 1, to, host) || set_path(request, 1, path ? path : "/", path ? size - host : 1)) {
        add("no URI\n", 7);
        return;
    }
    send_out(request, 0, 0, result);
    if (result[0]) {
        failed(result + 8);
        return;
    }
    handle future = *(int32_t *)(result + 8), pollable = subscribe(future);
    block(pollable);
    drop_pollable(pollable);
    /* option<result<result<incoming-response, error-code>>>: each begins 8 bytes after the one around it. */
    get_response(future, result);
    if (!result[0] || result[8])
        __builtin_trap();
    if (result[16]) {
        failed(result + 24);
        return;
    }
    handle response = *(int32_t *)(result + 24);
    char line[16];
    add(line, (size_t)snprintf(line, sizeof line, "%d\n", response_status(response)));
    int32_t taken_body[2];
    incoming_body(response, taken_body);
    body_input(made(taken_body), taken_body);
    handle input = made(taken_body);
    struct { int32_t failed; const char *bytes; size_t length; } piece;
    for (size_t kept = taken;; taken = kept) {
        read_some(input, 65536, &piece);
        if (piece.failed & 0xff)
            return;
        add(piece.bytes, piece.length);
    }
}

__attribute__((export_name("wasi:http/incoming-handler@0.2.0#handle"))) void serve(handle request, handle out) {
    struct { int32_t some; const char *text; size_t length; } path;
    request_path(request, &path);
    length = 0;
    if (path.length > 6 && !memcmp(path.text, "/call/", 6)) {
        call(path.text + 6, path.length - 6);
    } else {
        add("front ", 6);
        add(path.text, path.length);
    }
    int32_t result[3];
    _Alignas(8) uint8_t finished[64];
    handle response = new_response(new_fields());
    response_body(response, result);
    handle body = made(result);
    body_output(body, result);
    handle output = made(result);
    set_response(out, 0, response, 0, 0, 0, 0, 0, 0);
    for (size_t at = 0; at < length; at += 4096)
        write_all(output, answer + at, length - at < 4096 ? length - at : 4096, result);
    drop_output(output);
    finish_body(body, 0, 0, finished);
}

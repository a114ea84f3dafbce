/* An HTTP service, by wasi:http itself. Its paths:
 *
 *   /echo      method, path and headers, one a line
 *   /scheme    http or https
 *   /count     the number of requests of this instance: always 1
 *   /upload    the number of bytes of the body
 *   /download  10 MB
 *   /mirror    the body, piece by piece, and a trailer
 *   /empty     204, without a body
 *   /trap      traps before it answers
 *   /cut       traps in the middle of its answer
 *   /drop      drops its body in the middle of its answer
 *   /short     announces 10 bytes, and sends 4
 *   /long      announces 4 bytes, and sends 8
 *   /fail      answers with an error code
 *   /fields    makes more fields than it may
 *   /mute      returns without an answer
 *   /spin      computes for ever
 *   /linger    answers, and then computes for ever
 *   /slow      answers after a second
 *   /say       prints a line in three pieces, and one to stderr
 *   /grow      takes memory until it is refused, and traps
 *   /hold      takes memory until it is refused, and answers when the body has ended
 *   /env/NAME  the value of an environment variable
 *   /file/PATH the contents of a file
 *   /relay/AUTHORITY/PATH  the answer to a GET of its own, by http
 *   /grpc.health.v1.Health/Check  gRPC: SERVING
 *   /hearth.test.Echo/Chat        gRPC: every message, and a trailer
 *   /hearth.test.Echo/Fail        gRPC: NOT_FOUND, without a message
 *
 * The imports are written as the component model's canonical ABI has them; see http.wit for the types.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "component.h"

#define TYPES "wasi:http/types@0.2.0"
#define STREAMS "wasi:io/streams@0.2.0"

IMPORT(TYPES, "[method]incoming-request.method") void request_method(handle, void *result);
IMPORT(TYPES, "[method]incoming-request.path-with-query") void request_path(handle, void *result);
IMPORT(TYPES, "[method]incoming-request.scheme") void request_scheme(handle, void *result);
IMPORT(TYPES, "[method]incoming-request.headers") handle request_headers(handle);
IMPORT(TYPES, "[method]incoming-request.consume") void request_body(handle, void *result);
IMPORT(TYPES, "[method]incoming-body.stream") void body_input(handle, void *result);
IMPORT(TYPES, "[constructor]fields") handle new_fields(void);
IMPORT(TYPES, "[method]fields.append") void append_field(handle, const char *, size_t, const char *, size_t, void *result);
IMPORT(TYPES, "[method]fields.entries") void field_entries(handle, void *result);
IMPORT(TYPES, "[constructor]outgoing-response") handle new_response(handle fields);
IMPORT(TYPES, "[method]outgoing-response.set-status-code") int32_t set_status(handle, int32_t);
IMPORT(TYPES, "[method]outgoing-response.body") void response_body(handle, void *result);
/* The response or an error-code, flattened: the case, then the larger of both. */
IMPORT(TYPES, "[static]response-outparam.set")
void set_response(handle out, int32_t failed, int32_t, int32_t, int64_t, int32_t, int32_t, int32_t, int32_t);
IMPORT(TYPES, "[method]outgoing-body.write") void body_output(handle, void *result);
IMPORT(TYPES, "[static]outgoing-body.finish") void finish_body(handle, int32_t has_trailers, handle, void *result);
IMPORT(STREAMS, "[method]input-stream.blocking-read") void read_some(handle, int64_t, void *result);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush") void write_all(handle, const char *, size_t, void *result);
IMPORT(STREAMS, "[resource-drop]output-stream") void drop_output(handle);
IMPORT(TYPES, "[resource-drop]outgoing-body") void drop_body(handle);

IMPORT(TYPES, "[constructor]outgoing-request") handle new_request(handle fields);
IMPORT(TYPES, "[method]outgoing-request.set-scheme")
int32_t set_scheme(handle, int32_t some, int32_t which, const char *, size_t);
IMPORT(TYPES, "[method]outgoing-request.set-authority") int32_t set_authority(handle, int32_t some, const char *, size_t);
IMPORT(TYPES, "[method]outgoing-request.set-path-with-query") int32_t set_path(handle, int32_t some, const char *, size_t);
IMPORT("wasi:http/outgoing-handler@0.2.0", "handle") void send_out(handle request, int32_t some, handle options, void *result);
IMPORT(TYPES, "[method]future-incoming-response.subscribe") handle subscribe(handle);
IMPORT(TYPES, "[method]future-incoming-response.get") void get_response(handle, void *result);
IMPORT(TYPES, "[method]incoming-response.consume") void relayed_body(handle, void *result);
IMPORT("wasi:io/poll@0.2.0", "[method]pollable.block") void block(handle);

static const char *const methods[] = {"GET",     "HEAD",    "POST",  "PUT",  "DELETE",
                                      "CONNECT", "OPTIONS", "TRACE", "PATCH"};

/* result<handle>. */
static handle made(const int32_t *result) {
    if (result[0] & 0xff)
        __builtin_trap();
    return result[1];
}

static void field(handle fields, const char *name, const char *value) {
    uint8_t result[2];
    append_field(fields, name, strlen(name), value, strlen(value), result);
    if (result[0])
        __builtin_trap();
}

struct answer {
    handle body, output;
};

/* Sends the head, with one more field if `name` is not 0. */
static struct answer answer_as(handle out, int status, const char *type, const char *name, const char *value) {
    int32_t result[2];
    handle fields = new_fields();
    field(fields, "content-type", type);
    if (name)
        field(fields, name, value);
    handle response = new_response(fields);
    set_status(response, status);
    struct answer answer;
    response_body(response, result);
    answer.body = made(result);
    body_output(answer.body, result);
    answer.output = made(result);
    set_response(out, 0, response, 0, 0, 0, 0, 0, 0);
    return answer;
}

static struct answer answer_with(handle out, int status, const char *name, const char *value) {
    return answer_as(out, status, "text/plain", name, value);
}

static struct answer answer(handle out, int status) { return answer_with(out, status, 0, 0); }

/* Writes in pieces, as one call takes 4096 bytes at most. */
static int put(handle output, const char *bytes, size_t length) {
    while (length) {
        int32_t result[3];
        size_t piece = length < 4096 ? length : 4096;
        write_all(output, bytes, piece, result);
        if (result[0] & 0xff)
            return -1;
        bytes += piece;
        length -= piece;
    }
    return 0;
}

static void finish(struct answer answer, handle trailers) {
    _Alignas(8) uint8_t result[64];
    drop_output(answer.output);
    finish_body(answer.body, trailers != 0, trailers, result);
}

static void say(handle out, int status, const char *text) {
    struct answer given = answer(out, status);
    put(given.output, text, strlen(text));
    finish(given, 0);
}

static void echo(handle request, handle out, const char *path) {
    struct { uint32_t which; const char *other; size_t length; } method;
    struct { const struct { const char *name; size_t name_length; const char *value; size_t length; } *all; size_t count; } fields;
    static char text[1 << 16];
    request_method(request, &method);
    size_t size = 0;
#define ADD(...) (size += (size_t)snprintf(text + size, sizeof text - size, __VA_ARGS__))
    if ((method.which & 0xff) < 9)
        ADD("%s %s\n", methods[method.which & 0xff], path);
    else
        ADD("%.*s %s\n", (int)method.length, method.other, path);
    field_entries(request_headers(request), &fields);
    for (size_t i = 0; i < fields.count; i++)
        ADD("%.*s: %.*s\n", (int)fields.all[i].name_length, fields.all[i].name, (int)fields.all[i].length, fields.all[i].value);
    say(out, 200, text);
}

static void scheme(handle request, handle out) {
    struct { int32_t some, which; const char *other; size_t length; } scheme = {0};
    request_scheme(request, &scheme);
    const char *const schemes[] = {"http\n", "https\n", "another\n"};
    say(out, 200, scheme.some & 0xff ? schemes[scheme.which & 0xff] : "none\n");
}

static handle input_of(handle request) {
    int32_t result[2];
    request_body(request, result);
    body_input(made(result), result);
    return made(result);
}

struct piece {
    int32_t failed;
    const char *bytes;
    size_t length;
};

static void upload(handle request, handle out) {
    handle input = input_of(request);
    char text[64];
    size_t total = 0, kept = taken;
    for (struct piece piece;; total += piece.length) {
        taken = kept;
        read_some(input, 65536, &piece);
        if (piece.failed & 0xff)
            break;
    }
    snprintf(text, sizeof text, "%zu bytes\n", total);
    say(out, 200, text);
}

/* Copies the body. */
static void copy(handle input, struct answer given) {
    size_t kept = taken;
    for (struct piece piece;;) {
        taken = kept;
        read_some(input, 65536, &piece);
        if (piece.failed & 0xff || put(given.output, piece.bytes, piece.length))
            break;
    }
}

static void mirror(handle request, handle out) {
    handle input = input_of(request);
    struct answer given = answer_with(out, 200, "trailer", "x-trailer");
    copy(input, given);
    handle trailers = new_fields();
    field(trailers, "x-trailer", "the end");
    finish(given, trailers);
}

static void relay(handle out, const char *where) {
    _Alignas(8) uint8_t result[96];
    size_t length = strcspn(where, "/");
    handle request = new_request(new_fields());
    if (set_scheme(request, 1, 0, 0, 0) || set_authority(request, 1, where, length) ||
        set_path(request, 1, where + length, strlen(where + length)))
        __builtin_trap();
    send_out(request, 0, 0, result);
    if (result[0])
        __builtin_trap();
    handle future = *(int32_t *)(result + 8);
    block(subscribe(future));
    /* option<result<result<incoming-response, error-code>>>: each begins 8 bytes after the one around it. */
    get_response(future, result);
    if (!result[0] || result[8] || result[16]) {
        say(out, 502, "no answer\n");
        return;
    }
    int32_t made_result[2];
    relayed_body(*(int32_t *)(result + 24), made_result);
    body_input(made(made_result), made_result);
    handle input = made(made_result);
    struct answer given = answer(out, 200);
    copy(input, given);
    finish(given, 0);
}

/* gRPC over HTTP/2: messages with a prefix of 5 bytes, and the status in the trailers. */
static const char grpc[] = "application/grpc+proto";

static handle grpc_status(const char *status) {
    handle trailers = new_fields();
    field(trailers, "grpc-status", status);
    field(trailers, "x-trailer", "the end");
    return trailers;
}

static void grpc_health(handle out) {
    static const char serving[] = {0, 0, 0, 0, 2, 0x08, 1};
    struct answer given = answer_as(out, 200, grpc, 0, 0);
    put(given.output, serving, sizeof serving);
    finish(given, grpc_status("0"));
}

static void grpc_chat(handle request, handle out) {
    handle input = input_of(request);
    struct answer given = answer_as(out, 200, grpc, 0, 0);
    copy(input, given);
    finish(given, grpc_status("0"));
}

static void download(handle out) {
    static char block[4096];
    memset(block, 'x', sizeof block);
    struct answer given = answer(out, 200);
    for (size_t left = 10000000; left;) {
        size_t piece = left < sizeof block ? left : sizeof block;
        if (put(given.output, block, piece))
            return;
        left -= piece;
    }
    finish(given, 0);
}

static void environment(handle out, const char *name) {
    const char *value = getenv(name);
    say(out, value ? 200 : 404, value ? value : "not set\n");
}

static void file(handle out, const char *path) {
    static char text[1 << 16];
    FILE *opened = fopen(path, "r");
    if (!opened) {
        say(out, 404, "no such file\n");
        return;
    }
    text[fread(text, 1, sizeof text - 1, opened)] = 0;
    say(out, 200, text);
}

/* Announces so many bytes, and sends others. */
static void announce(handle out, const char *length, const char *text) {
    struct answer given = answer_with(out, 200, "content-length", length);
    put(given.output, text, strlen(text));
    finish(given, 0);
}

static void many_fields(handle out) {
    static char value[8192];
    memset(value, 'x', sizeof value - 1);
    handle fields = new_fields();
    for (int i = 0; i < 100; i++)
        field(fields, "x", value);
    say(out, 200, "made\n");
}

static void hold(handle request, handle out) {
    handle input = input_of(request);
    struct answer given = answer(out, 200);
    for (size_t pages = 16; pages; pages /= 16)
        while (__builtin_wasm_memory_grow(0, pages) != (size_t)-1)
            continue;
    put(given.output, "held", 4);
    struct piece piece;
    do
        read_some(input, 65536, &piece);
    while (!(piece.failed & 0xff));
    finish(given, 0);
}

static int requests;

__attribute__((export_name("wasi:http/incoming-handler@0.2.0#handle"))) void serve(handle request, handle out) {
    struct { uint32_t some; const char *at; size_t length; } asked;
    char path[256] = "", text[64];
    request_path(request, &asked);
    if (asked.some & 0xff)
        snprintf(path, sizeof path, "%.*s", (int)asked.length, asked.at);
#define IS(name) (!strncmp(path, name, strlen(name)))
    requests++;
    if (IS("/echo")) {
        echo(request, out, path);
    } else if (IS("/grpc.health.v1.Health/Check")) {
        grpc_health(out);
    } else if (IS("/hearth.test.Echo/Chat")) {
        grpc_chat(request, out);
    } else if (IS("/hearth.test.Echo/Fail")) {
        finish(answer_as(out, 200, grpc, 0, 0), grpc_status("5"));
    } else if (IS("/relay/")) {
        relay(out, path + strlen("/relay/"));
    } else if (IS("/scheme")) {
        scheme(request, out);
    } else if (IS("/count")) {
        snprintf(text, sizeof text, "%d\n", requests);
        say(out, 200, text);
    } else if (IS("/upload")) {
        upload(request, out);
    } else if (IS("/download")) {
        download(out);
    } else if (IS("/mirror")) {
        mirror(request, out);
    } else if (IS("/empty")) {
        finish(answer(out, 204), 0);
    } else if (IS("/trap")) {
        __builtin_trap();
    } else if (IS("/cut")) {
        put(answer(out, 200).output, "half", 4);
        __builtin_trap();
    } else if (IS("/drop")) {
        struct answer given = answer(out, 200);
        put(given.output, "half", 4);
        drop_output(given.output);
        drop_body(given.body);
    } else if (IS("/short")) {
        announce(out, "10", "half");
    } else if (IS("/long")) {
        announce(out, "4", "halfhalf");
    } else if (IS("/fail")) {
        const int destination_not_found = 2;
        set_response(out, 1, destination_not_found, 0, 0, 0, 0, 0, 0);
    } else if (IS("/fields")) {
        many_fields(out);
    } else if (IS("/mute")) {
        return;
    } else if (IS("/spin")) {
        for (volatile int forever = 1; forever;)
            continue;
    } else if (IS("/linger")) {
        say(out, 200, "done\n");
        for (volatile int forever = 1; forever;)
            continue;
    } else if (IS("/slow")) {
        usleep(1000000);
        say(out, 200, "slow\n");
    } else if (IS("/say")) {
        write(1, "one ", 4);
        write(1, "two ", 4);
        write(1, "three\n", 6);
        fprintf(stderr, "to stderr\n");
        say(out, 200, "said\n");
    } else if (IS("/grow")) {
        while (__builtin_wasm_memory_grow(0, 16) != (size_t)-1)
            continue;
        __builtin_trap();
    } else if (IS("/hold")) {
        hold(request, out);
    } else if (IS("/env/")) {
        environment(out, path + strlen("/env/"));
    } else if (IS("/file/")) {
        file(out, path + strlen("/file"));
    } else {
        say(out, 404, "no such path\n");
    }
}

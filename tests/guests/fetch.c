/* A client of HTTP, by wasi:http itself: fetch SCHEME AUTHORITY PATH [OPTION=NUMBER ...]
 *
 *   times=N      so many times
 *   upload=N     with a body of N bytes
 *   grpc=1       with a message of gRPC as the body; it prints which trailers came, too
 *   connect=MS first=MS between=MS   time-outs
 *
 * It prints a line for each response, `STATUS LENGTH BEGINNING` (of gRPC, the beginning of the message), or `error NAME`
 * and ends with 1.
 *
 * The imports are written as the component model's canonical ABI has them; see http.wit for the types.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "component.h"

#define TYPES "wasi:http/types@0.2.0"
#define STREAMS "wasi:io/streams@0.2.0"

IMPORT(TYPES, "[constructor]fields") handle new_fields(void);
IMPORT(TYPES, "[method]fields.append") void append_field(handle, const char *, size_t, const char *, size_t, void *result);
IMPORT(TYPES, "[constructor]outgoing-request") handle new_request(handle fields);
IMPORT(TYPES, "[method]outgoing-request.set-method") int32_t set_method(handle, int32_t which, const char *, size_t);
IMPORT(TYPES, "[method]outgoing-request.set-scheme")
int32_t set_scheme(handle, int32_t some, int32_t which, const char *, size_t);
IMPORT(TYPES, "[method]outgoing-request.set-authority") int32_t set_authority(handle, int32_t some, const char *, size_t);
IMPORT(TYPES, "[method]outgoing-request.set-path-with-query") int32_t set_path(handle, int32_t some, const char *, size_t);
IMPORT(TYPES, "[method]outgoing-request.body") void request_body(handle, void *result);
IMPORT(TYPES, "[method]outgoing-body.write") void body_output(handle, void *result);
IMPORT(TYPES, "[static]outgoing-body.finish") void finish_body(handle, int32_t has_trailers, handle, void *result);
IMPORT(TYPES, "[constructor]request-options") handle new_options(void);
IMPORT(TYPES, "[method]request-options.set-connect-timeout") int32_t set_connect(handle, int32_t some, int64_t ns);
IMPORT(TYPES, "[method]request-options.set-first-byte-timeout") int32_t set_first(handle, int32_t some, int64_t ns);
IMPORT(TYPES, "[method]request-options.set-between-bytes-timeout") int32_t set_between(handle, int32_t some, int64_t ns);
IMPORT("wasi:http/outgoing-handler@0.2.0", "handle") void send_out(handle request, int32_t some, handle options, void *result);
IMPORT(TYPES, "[method]future-incoming-response.subscribe") handle subscribe(handle);
IMPORT(TYPES, "[method]future-incoming-response.get") void get_response(handle, void *result);
IMPORT(TYPES, "[resource-drop]future-incoming-response") void drop_future(handle);
IMPORT(TYPES, "[method]incoming-response.status") int32_t response_status(handle);
IMPORT(TYPES, "[method]incoming-response.consume") void response_body(handle, void *result);
IMPORT(TYPES, "[resource-drop]incoming-response") void drop_response(handle);
IMPORT(TYPES, "[method]incoming-body.stream") void body_input(handle, void *result);
IMPORT(TYPES, "[resource-drop]incoming-body") void drop_body(handle);
IMPORT(TYPES, "[static]incoming-body.finish") handle finish_reading(handle);
IMPORT(TYPES, "[method]future-trailers.subscribe") handle subscribe_trailers(handle);
IMPORT(TYPES, "[method]future-trailers.get") void get_trailers(handle, void *result);
IMPORT(TYPES, "[resource-drop]future-trailers") void drop_trailers(handle);
IMPORT(TYPES, "[method]fields.has") int32_t has_field(handle, const char *, size_t);
IMPORT(TYPES, "[resource-drop]fields") void drop_fields(handle);
IMPORT(TYPES, "http-error-code") void error_code_of(handle error, void *result);
IMPORT(STREAMS, "[method]input-stream.blocking-read") void read_some(handle, int64_t, void *result);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush") void write_all(handle, const char *, size_t, void *result);
IMPORT(STREAMS, "[resource-drop]input-stream") void drop_input(handle);
IMPORT(STREAMS, "[resource-drop]output-stream") void drop_output(handle);
IMPORT("wasi:io/poll@0.2.0", "[method]pollable.block") void block(handle);
IMPORT("wasi:io/poll@0.2.0", "[resource-drop]pollable") void drop_pollable(handle);

static const char *const errors[] = {
    "DNS-timeout", "DNS-error", "destination-not-found", "destination-unavailable", "destination-IP-prohibited",
    "destination-IP-unroutable", "connection-refused", "connection-terminated", "connection-timeout",
    "connection-read-timeout", "connection-write-timeout", "connection-limit-reached", "TLS-protocol-error",
    "TLS-certificate-error", "TLS-alert-received", "HTTP-request-denied", "HTTP-request-length-required",
    "HTTP-request-body-size", "HTTP-request-method-invalid", "HTTP-request-URI-invalid", "HTTP-request-URI-too-long",
    "HTTP-request-header-section-size", "HTTP-request-header-size", "HTTP-request-trailer-section-size",
    "HTTP-request-trailer-size", "HTTP-response-incomplete", "HTTP-response-header-section-size",
    "HTTP-response-header-size", "HTTP-response-body-size", "HTTP-response-trailer-section-size",
    "HTTP-response-trailer-size", "HTTP-response-transfer-coding", "HTTP-response-content-coding",
    "HTTP-response-timeout", "HTTP-upgrade-failed", "HTTP-protocol-error", "loop-detected", "configuration-error",
    "internal-error"};

/* `code` is where the variant begins. */
static _Noreturn void fail(const uint8_t *code) {
    printf("error %s\n", *code < sizeof errors / sizeof *errors ? errors[*code] : "unknown");
    exit(1);
}

static handle made(const int32_t *result) {
    if (result[0] & 0xff)
        __builtin_trap();
    return result[1];
}

static long option(int count, char **options, const char *name, long otherwise) {
    size_t length = strlen(name);
    for (int i = 0; i < count; i++)
        if (!strncmp(options[i], name, length) && options[i][length] == '=')
            return atol(options[i] + length + 1);
    return otherwise;
}

/* The prefix of a message of gRPC: not compressed, and its length. */
static const char message[] = {0, 0, 0, 0, 5, 'h', 'e', 'l', 'l', 'o'};
enum { PREFIX = 5 };

static void write_message(handle body) {
    _Alignas(8) uint8_t result[64];
    int32_t made_result[2], written[3];
    body_output(body, made_result);
    handle output = made(made_result);
    write_all(output, message, sizeof message, written);
    drop_output(output);
    finish_body(body, 0, 0, result);
}

/* The trailers after a body. */
static void print_trailers(handle body) {
    _Alignas(8) uint8_t result[96];
    const char *const names[] = {"grpc-status", "x-trailer"};
    handle future = finish_reading(body), pollable = subscribe_trailers(future);
    block(pollable);
    drop_pollable(pollable);
    /* option<result<result<option<fields>, error-code>>>: each begins 8 bytes after the one around it. */
    get_trailers(future, result);
    if (!result[0] || result[8])
        __builtin_trap();
    if (result[16])
        fail(result + 24);
    if (result[24]) {
        handle trailers = *(int32_t *)(result + 28);
        for (size_t name = 0; name < sizeof names / sizeof *names; name++) {
            if (has_field(trailers, names[name], strlen(names[name])))
                printf("trailer %s\n", names[name]);
        }
        drop_fields(trailers);
    }
    drop_trailers(future);
}

static void write_body(handle body, long left) {
    static char block[4096];
    _Alignas(8) uint8_t result[64];
    int32_t made_result[2], written[3];
    memset(block, 'u', sizeof block);
    body_output(body, made_result);
    handle output = made(made_result);
    while (left > 0) {
        size_t piece = left < (long)sizeof block ? (size_t)left : sizeof block;
        write_all(output, block, piece, written);
        if (written[0] & 0xff)
            break;
        left -= piece;
    }
    drop_output(output);
    finish_body(body, 0, 0, result);
}

static void read_body(handle response, int32_t status, int is_grpc) {
    int32_t result[2];
    response_body(response, result);
    handle body = made(result);
    body_input(body, result);
    handle input = made(result);
    char beginning[100] = "";
    size_t total = 0, kept = taken;
    struct { int32_t failed; const char *bytes; size_t length; } piece;
    for (;;) {
        taken = kept;
        read_some(input, 65536, &piece);
        if (piece.failed & 0xff)
            break;
        if (total < sizeof beginning - 1) {
            size_t room = sizeof beginning - 1 - total;
            memcpy(beginning + total, piece.bytes, piece.length < room ? piece.length : room);
        }
        total += piece.length;
    }
    /* stream-error: last-operation-failed with its error, or closed. */
    if (((uintptr_t)piece.bytes & 0xff) == 0) {
        _Alignas(8) uint8_t code[64];
        error_code_of((handle)piece.length, code);
        if (code[0])
            fail(code + 8);
        puts("error without a code");
        exit(1);
    }
    printf("%d %zu %s\n", status, total, beginning + (is_grpc && total > PREFIX ? PREFIX : 0));
    drop_input(input);
    if (is_grpc)
        print_trailers(body);
    else
        drop_body(body);
    fflush(stdout);
}

static void fetch(char **where, int count, char **options) {
    _Alignas(8) uint8_t result[96];
    long upload = option(count, options, "upload", 0), is_grpc = option(count, options, "grpc", 0);
    handle fields = new_fields();
    if (upload) {
        char length[32];
        snprintf(length, sizeof length, "%ld", upload);
        append_field(fields, "content-length", 14, length, strlen(length), result);
    }
    if (is_grpc)
        append_field(fields, "content-type", 12, "application/grpc+proto", 22, result);
    handle request = new_request(fields);
    set_method(request, upload || is_grpc ? 2 : 0, 0, 0);
    set_scheme(request, 1, !strcmp(where[0], "https"), 0, 0);
    if (set_authority(request, 1, where[1], strlen(where[1])) || set_path(request, 1, where[2], strlen(where[2]))) {
        puts("error HTTP-request-URI-invalid");
        exit(1);
    }
    handle body = 0;
    if (upload || is_grpc) {
        int32_t asked[2];
        request_body(request, asked);
        body = made(asked);
    }
    handle given = new_options();
    const int64_t ms = 1000000;
    long connect = option(count, options, "connect", 0), first = option(count, options, "first", 0);
    long between = option(count, options, "between", 0);
    set_connect(given, connect != 0, connect * ms);
    set_first(given, first != 0, first * ms);
    set_between(given, between != 0, between * ms);
    send_out(request, 1, given, result);
    if (result[0])
        fail(result + 8);
    handle future = *(int32_t *)(result + 8);
    if (is_grpc)
        write_message(body);
    else if (upload)
        write_body(body, upload);
    handle pollable = subscribe(future);
    block(pollable);
    drop_pollable(pollable);
    /* option<result<result<incoming-response, error-code>>>: each begins 8 bytes after the one around it. */
    get_response(future, result);
    if (!result[0] || result[8])
        __builtin_trap();
    if (result[16])
        fail(result + 24);
    handle response = *(int32_t *)(result + 24);
    read_body(response, response_status(response), is_grpc != 0);
    drop_response(response);
    drop_future(future);
}

int main(int count, char **arguments) {
    if (count < 4) {
        fputs("usage: fetch SCHEME AUTHORITY PATH [OPTION=NUMBER ...]\n", stderr);
        return 2;
    }
    long times = option(count - 4, arguments + 4, "times", 1);
    size_t kept = taken;
    while (times-- > 0) {
        fetch(arguments + 1, count - 4, arguments + 4);
        taken = kept;
    }
    return 0;
}

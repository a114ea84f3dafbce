/* TCP and names, by wasi:sockets itself: preview 1 has no sockets and this libc knows no other.
 *
 *   net listen PORT TEXT     answers every connection with TEXT and its first message, for ever
 *   net fetch ADDRESS PORT   connects (to a name or an IPv4 address), sends "hello", prints the answer
 *   net lookup NAME          prints the addresses of a name
 *
 * The imports are written as the component model's canonical ABI has them; see net.wit for the types.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "component.h"

#define TCP "wasi:sockets/tcp@0.2.6"
#define NAMES "wasi:sockets/ip-name-lookup@0.2.6"
#define STREAMS "wasi:io/streams@0.2.6"

IMPORT("wasi:sockets/instance-network@0.2.6", "instance-network") handle instance_network(void);
IMPORT("wasi:sockets/tcp-create-socket@0.2.6", "create-tcp-socket") void create_socket(int32_t family, void *result);
/* An ip-socket-address, flattened: the case, then the larger of both records. */
#define ADDRESS int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t
IMPORT(TCP, "[method]tcp-socket.start-bind") void start_bind(handle, handle network, ADDRESS, void *result);
IMPORT(TCP, "[method]tcp-socket.finish-bind") void finish_bind(handle, void *result);
IMPORT(TCP, "[method]tcp-socket.start-listen") void start_listen(handle, void *result);
IMPORT(TCP, "[method]tcp-socket.finish-listen") void finish_listen(handle, void *result);
IMPORT(TCP, "[method]tcp-socket.accept") void accept_one(handle, void *result);
IMPORT(TCP, "[method]tcp-socket.start-connect") void start_connect(handle, handle network, ADDRESS, void *result);
IMPORT(TCP, "[method]tcp-socket.finish-connect") void finish_connect(handle, void *result);
IMPORT(TCP, "[method]tcp-socket.subscribe") handle socket_ready(handle);
IMPORT(TCP, "[resource-drop]tcp-socket") void drop_socket(handle);
IMPORT(NAMES, "resolve-addresses") void resolve(handle network, const char *, size_t, void *result);
IMPORT(NAMES, "[method]resolve-address-stream.resolve-next-address") void next_address(handle, void *result);
IMPORT(NAMES, "[method]resolve-address-stream.subscribe") handle names_ready(handle);
IMPORT("wasi:io/poll@0.2.6", "[method]pollable.block") void block(handle);
IMPORT("wasi:io/poll@0.2.6", "[resource-drop]pollable") void drop_pollable(handle);
IMPORT(STREAMS, "[method]input-stream.blocking-read") void read_some(handle, int64_t, void *result);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush") void write_all(handle, const char *, size_t, void *result);
IMPORT(STREAMS, "[resource-drop]input-stream") void drop_input(handle);
IMPORT(STREAMS, "[resource-drop]output-stream") void drop_output(handle);

static const char *const errors[] = {
    "unknown", "access denied", "not supported", "invalid argument", "out of memory", "timeout",
    "concurrency conflict", "not in progress", "would block", "invalid state", "new socket limit",
    "address not bindable", "address in use", "remote unreachable", "connection refused", "connection reset",
    "connection aborted", "datagram too large", "name unresolvable", "temporary resolver failure",
    "permanent resolver failure"};
enum { WOULD_BLOCK = 8 };

static void fail(const char *operation, uint8_t code) {
    fprintf(stderr, "%s: %s\n", operation, errors[code]);
    exit(1);
}

/* result<_, error-code>. */
static void check(const char *operation, const uint8_t *result) {
    if (result[0])
        fail(operation, result[1]);
}

static void wait_for(handle pollable) {
    block(pollable);
    drop_pollable(pollable);
}

/* The IPv4 addresses of a name, one line each if `print`; the first is returned. */
static void look_up(handle network, const char *name, int print, uint8_t first[4]) {
    _Alignas(4) uint8_t stream[8], next[24];
    resolve(network, name, strlen(name), stream);
    if (stream[0])
        fail(name, stream[4]);
    handle names;
    memcpy(&names, stream + 4, 4);
    for (int found = 0;;) {
        next_address(names, next);
        if (next[0] && next[2] == WOULD_BLOCK) {
            wait_for(names_ready(names));
            continue;
        }
        if (next[0])
            fail(name, next[2]);
        if (!next[2])
            return;
        if (next[4] == 0) {
            if (!found++)
                memcpy(first, next + 6, 4);
            if (print)
                printf("%d.%d.%d.%d\n", next[6], next[7], next[8], next[9]);
        } else if (print) {
            uint16_t group[8];
            memcpy(group, next + 6, sizeof group);
            for (int i = 0; i < 8; i++)
                printf("%x%c", group[i], i < 7 ? ':' : '\n');
        }
    }
}

static handle new_socket(void) {
    _Alignas(4) uint8_t made[8];
    create_socket(0, made);
    if (made[0])
        fail("socket", made[4]);
    handle socket;
    memcpy(&socket, made + 4, 4);
    return socket;
}

static size_t read_up_to(handle input, char *into, size_t size) {
    struct { int32_t failed; const char *bytes; size_t length; } some;
    read_some(input, (int64_t)size, &some);
    if (some.failed & 0xff)
        return 0;
    memcpy(into, some.bytes, some.length);
    return some.length;
}

static int listen_at(handle network, int port, const char *text) {
    uint8_t done[2];
    handle socket = new_socket();
    start_bind(socket, network, 0, port, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, done);
    check("bind", done);
    finish_bind(socket, done);
    check("bind", done);
    start_listen(socket, done);
    check("listen", done);
    finish_listen(socket, done);
    check("listen", done);
    printf("listening\n");
    fflush(stdout);
    size_t kept = taken;
    for (;;) {
        taken = kept;
        struct { int32_t failed; handle socket, input, output; } peer;
        accept_one(socket, &peer);
        if (peer.failed & 0xff) {
            uint8_t code = *(uint8_t *)&peer.socket;
            if (code != WOULD_BLOCK)
                fail("accept", code);
            wait_for(socket_ready(socket));
            continue;
        }
        char asked[256], answer[1024], result[16];
        size_t length = read_up_to(peer.input, asked, sizeof asked);
        int size = snprintf(answer, sizeof answer, "%s: %.*s\n", text, (int)length, asked);
        write_all(peer.output, answer, (size_t)size, result);
        drop_input(peer.input);
        drop_output(peer.output);
        drop_socket(peer.socket);
    }
}

static int fetch(handle network, const char *address, int port) {
    uint8_t at[4], done[2];
    look_up(network, address, 0, at);
    handle socket = new_socket();
    start_connect(socket, network, 0, port, at[0], at[1], at[2], at[3], 0, 0, 0, 0, 0, 0, done);
    check("connect", done);
    struct { int32_t failed; handle input, output; } peer;
    for (;;) {
        finish_connect(socket, &peer);
        if (!(peer.failed & 0xff))
            break;
        uint8_t code = *(uint8_t *)&peer.input;
        if (code != WOULD_BLOCK)
            fail("connect", code);
        wait_for(socket_ready(socket));
    }
    char answer[1024], result[16];
    write_all(peer.output, "hello", 5, result);
    for (size_t length; (length = read_up_to(peer.input, answer, sizeof answer)) > 0;)
        fwrite(answer, 1, length, stdout);
    return 0;
}

int main(int argc, char **argv) {
    handle network = instance_network();
    if (argc == 4 && !strcmp(argv[1], "listen"))
        return listen_at(network, atoi(argv[2]), argv[3]);
    if (argc == 4 && !strcmp(argv[1], "fetch"))
        return fetch(network, argv[2], atoi(argv[3]));
    uint8_t first[4];
    if (argc == 3 && !strcmp(argv[1], "lookup"))
        return look_up(network, argv[2], 1, first), 0;
    fprintf(stderr, "usage: net listen PORT TEXT | fetch ADDRESS PORT | lookup NAME\n");
    return 2;
}

/* Answers each TCP connection on the port given as argument with a greeting. As Wasm it is a component
 * that uses WASI's sockets through the canonical ABI (see tcp.wit): wasi-libc has none of preview 1's. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char greeting[] = "hello over TCP\n";

static int fail(const char *operation, int code) {
    fprintf(stderr, "%s: error %d\n", operation, code);
    return 1;
}

#ifdef __wasm__

#define IMPORT(interface, name) __attribute__((import_module("wasi:" interface "@0.2.0"), import_name(name)))

enum { IPV4 = 0, WOULD_BLOCK = 8 };

/* result<_, error-code> */
struct done {
    uint8_t failed, error;
};

/* result<socket and perhaps its streams, error-code> */
struct socket {
    uint8_t failed;
    union {
        uint8_t error;
        struct {
            int32_t socket, input, output;
        };
    };
};

/* result<_, stream-error> */
struct written {
    uint8_t failed;
    int32_t error[2];
};

IMPORT("sockets/instance-network", "instance-network") int32_t instance_network(void);
IMPORT("sockets/tcp-create-socket", "create-tcp-socket") void create_socket(int32_t family, struct socket *);
/* An IPv4 address takes six of the twelve words of an address. */
IMPORT("sockets/tcp", "[method]tcp-socket.start-bind")
void start_bind(int32_t socket, int32_t network, int32_t family, int32_t port, int32_t a, int32_t b, int32_t c,
                int32_t d, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, struct done *);
IMPORT("sockets/tcp", "[method]tcp-socket.finish-bind") void finish_bind(int32_t socket, struct done *);
IMPORT("sockets/tcp", "[method]tcp-socket.start-listen") void start_listen(int32_t socket, struct done *);
IMPORT("sockets/tcp", "[method]tcp-socket.finish-listen") void finish_listen(int32_t socket, struct done *);
IMPORT("sockets/tcp", "[method]tcp-socket.accept") void accept_one(int32_t socket, struct socket *);
IMPORT("sockets/tcp", "[method]tcp-socket.subscribe") int32_t subscribe(int32_t socket);
IMPORT("sockets/tcp", "[resource-drop]tcp-socket") void drop_socket(int32_t socket);
IMPORT("io/poll", "[method]pollable.block") void block(int32_t pollable);
IMPORT("io/poll", "[resource-drop]pollable") void drop_pollable(int32_t pollable);
IMPORT("io/streams", "[method]output-stream.blocking-write-and-flush")
void write_all(int32_t stream, const char *text, size_t length, struct written *);
IMPORT("io/streams", "[resource-drop]input-stream") void drop_input(int32_t stream);
IMPORT("io/streams", "[resource-drop]output-stream") void drop_output(int32_t stream);

static void wait_for(int32_t socket) {
    int32_t pollable = subscribe(socket);
    block(pollable);
    drop_pollable(pollable);
}

/* Calls `finish` until it would not have to wait. */
#define FINISH(finish, socket, result)                                                                                 \
    while (finish(socket, &result), result.failed && result.error == WOULD_BLOCK)                                      \
    wait_for(socket)

static int serve(int port) {
    struct socket listener, connection;
    struct done done;
    struct written written;
    create_socket(IPV4, &listener);
    if (listener.failed)
        return fail("create-tcp-socket", listener.error);
    start_bind(listener.socket, instance_network(), IPV4, port, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, &done);
    if (done.failed)
        return fail("start-bind", done.error);
    FINISH(finish_bind, listener.socket, done);
    if (done.failed)
        return fail("finish-bind", done.error);
    start_listen(listener.socket, &done);
    if (done.failed)
        return fail("start-listen", done.error);
    FINISH(finish_listen, listener.socket, done);
    if (done.failed)
        return fail("finish-listen", done.error);
    puts("listening");
    fflush(stdout);
    for (;;) {
        FINISH(accept_one, listener.socket, connection);
        if (connection.failed)
            return fail("accept", connection.error);
        write_all(connection.output, greeting, strlen(greeting), &written);
        if (written.failed)
            return fail("write", written.failed);
        drop_input(connection.input);
        drop_output(connection.output);
        drop_socket(connection.socket);
    }
}

#else

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static int serve(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        return fail("listen", errno);
    puts("listening");
    fflush(stdout);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0 || write(connection, greeting, strlen(greeting)) < 0)
            return fail("accept", errno);
        close(connection);
    }
}

#endif

int main(int argc, char **argv) { return serve(argc > 1 ? atoi(argv[1]) : 80); }

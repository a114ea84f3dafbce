/* A component of Spin's first SDKs, by the ABI of wit-bindgen 0.2: it takes whole HTTP requests, and messages of Redis.
 *
 *   GET /env/NAME             the variable of the environment
 *   GET /header/NAME          the value of the request's header
 *   POST /echo                the request's body
 *   GET /status/N             no headers, no body
 *   GET /config/KEY           the variable of the application
 *   GET /keep/STORE/VALUE     sets a key of the store to the value, and reads it
 *   GET /fetch/URL            status and body of another server's answer
 *   GET /redis/ADDRESS        sets a key there, counts another, and reads the first
 *   GET /trap, /exit          ends without an answer
 *
 * Where a call fails, the body is the name of the call and the number of the error.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

/* A text, and lists of pairs of texts, as in memory. */
struct text { char *at; uint32_t length; };
struct pair { struct text name, value; };
struct pairs { struct pair *at; uint32_t count; };

struct response {
    uint16_t status;
    _Alignas(4) uint8_t has_headers;
    struct pairs headers;
    _Alignas(4) uint8_t has_body;
    struct text body;
};
_Static_assert(sizeof(struct response) == 28, "the size that hosts expect");

/* The results of calls: whether they failed, then the error or the value. */
struct text_result { uint8_t failed; union { struct text value; struct { uint8_t code; struct text text; } error; }; };
struct number_result { uint8_t failed; union { uint32_t value; struct { uint8_t code; struct text text; } error; }; };
struct no_result { uint8_t failed, error; };
struct long_result { uint8_t failed; union { int64_t value; uint8_t error; }; };
struct response_result { uint8_t failed; union { struct response value; uint8_t error; }; };

IMPORT("spin-config", "get-config") void get_config(const char *, uint32_t, struct text_result *);
IMPORT("key-value", "open") void store_open(const char *, uint32_t, struct number_result *);
IMPORT("key-value", "set")
void store_set(uint32_t, const char *, uint32_t, const char *, uint32_t, struct number_result *);
IMPORT("key-value", "get") void store_get(uint32_t, const char *, uint32_t, struct text_result *);
IMPORT("key-value", "close") void store_close(uint32_t);
IMPORT("wasi-outbound-http", "request")
void http_request(uint32_t method, const char *uri, uint32_t uri_length, const struct pair *headers, uint32_t count,
                  const struct pair *params, uint32_t params_count, uint32_t has_body, const char *body,
                  uint32_t body_length, struct response_result *);
IMPORT("outbound-redis", "set")
void redis_set(const char *, uint32_t, const char *, uint32_t, const char *, uint32_t, struct no_result *);
IMPORT("outbound-redis", "incr")
void redis_incr(const char *, uint32_t, const char *, uint32_t, struct long_result *);
IMPORT("outbound-redis", "get")
void redis_get(const char *, uint32_t, const char *, uint32_t, struct text_result *);

EXPORT("canonical_abi_realloc")
void *canonical_abi_realloc(void *old, uint32_t old_size, uint32_t alignment, uint32_t size) {
    void *made = realloc(old, size);
    if (!made)
        abort();
    return made;
}

EXPORT("canonical_abi_free") void canonical_abi_free(void *old, uint32_t size, uint32_t alignment) { free(old); }

static struct response answer;
static char body[4096];
static struct pair content_type = {{"content-type", 12}, {"text/plain", 10}};

static void *respond(uint16_t status, const char *text, uint32_t length) {
    answer = (struct response){status, 1, {&content_type, 1}, 1, {(char *)text, length}};
    return &answer;
}

static void *respond_text(const char *text) { return respond(200, text, strlen(text)); }

static void *failed(const char *call, int code) {
    return respond(500, body, snprintf(body, sizeof body, "%s %d", call, code));
}

/* The rest of a path after its start; null for another path. */
static const char *after(const char *path, const char *start) {
    size_t length = strlen(start);
    return strncmp(path, start, length) == 0 ? path + length : NULL;
}

static void *config(const char *key) {
    struct text_result got;
    get_config(key, strlen(key), &got);
    return got.failed ? failed("get-config", got.error.code) : respond(200, got.value.at, got.value.length);
}

static void *keep(const char *store, const char *value) {
    struct number_result opened, set;
    struct text_result got;
    store_open(store, strlen(store), &opened);
    if (opened.failed)
        return failed("open", opened.error.code);
    store_set(opened.value, "key", 3, value, strlen(value), &set);
    if (set.failed)
        return failed("set", set.error.code);
    store_get(opened.value, "none", 4, &got);
    if (!got.failed || got.error.code != 4)
        return failed("get of no key", got.failed);
    store_get(opened.value, "key", 3, &got);
    if (got.failed)
        return failed("get", got.error.code);
    store_close(opened.value);
    struct text_result closed;
    store_get(opened.value, "key", 3, &closed);
    if (!closed.failed || closed.error.code != 3)
        return failed("get of a closed store", closed.failed);
    return respond(200, got.value.at, got.value.length);
}

static void *fetch(const char *url) {
    struct response_result got;
    http_request(0, url, strlen(url), NULL, 0, NULL, 0, 0, NULL, 0, &got);
    if (got.failed)
        return failed("request", got.error);
    return respond(200, body, snprintf(body, sizeof body, "%d %.*s", got.value.status,
                                       (int)got.value.body.length, got.value.body.at));
}

static void *redis(const char *address) {
    struct no_result set;
    struct long_result count;
    struct text_result got;
    redis_set(address, strlen(address), "first", 5, "a value", 7, &set);
    if (set.failed)
        return failed("set", set.error);
    redis_incr(address, strlen(address), "count", 5, &count);
    if (count.failed)
        return failed("incr", count.error);
    redis_get(address, strlen(address), "first", 5, &got);
    if (got.failed)
        return failed("get", got.error.code);
    return respond(200, body, snprintf(body, sizeof body, "%lld %.*s", (long long)count.value, (int)got.value.length,
                                       got.value.at));
}

static void *header(const struct pair *headers, uint32_t count, const char *name) {
    for (uint32_t i = 0; i < count; i++)
        if (headers[i].name.length == strlen(name) && !memcmp(headers[i].name.at, name, strlen(name)))
            return respond(200, headers[i].value.at, headers[i].value.length);
    return respond(404, "", 0);
}

EXPORT("handle-http-request")
void *handle_http_request(uint32_t method, char *uri, uint32_t uri_length, struct pair *headers, uint32_t headers_count,
                          struct pair *params, uint32_t params_count, uint32_t has_body, char *request_body,
                          uint32_t body_length) {
    char path[1024];
    const char *rest;
    snprintf(path, sizeof path, "%.*s", (int)uri_length, uri);
    printf("request %u %s\n", method, path);
    fflush(stdout);
    if ((rest = after(path, "/env/")))
        return respond_text(getenv(rest) ? getenv(rest) : "unset");
    if ((rest = after(path, "/header/")))
        return header(headers, headers_count, rest);
    if (after(path, "/echo"))
        return respond(200, request_body, has_body ? body_length : 0);
    if ((rest = after(path, "/status/"))) {
        answer = (struct response){atoi(rest), 0, {0}, 0, {0}};
        return &answer;
    }
    if ((rest = after(path, "/config/")))
        return config(rest);
    if ((rest = after(path, "/keep/"))) {
        char *value = strchr(rest, '/');
        *value = 0;
        return keep(rest, value + 1);
    }
    if ((rest = after(path, "/fetch/")))
        return fetch(rest);
    if ((rest = after(path, "/redis/")))
        return redis(rest);
    if (after(path, "/trap"))
        __builtin_trap();
    if (after(path, "/exit"))
        exit(3);
    return respond(404, "no such path\n", 13);
}

/* `trap` traps, `fail` fails, `loop` never ends, `sleep` waits for a second. Any message but the first three becomes the
 * value of the key with the component's name, at the server of the environment. */
EXPORT("handle-redis-message") void *handle_redis_message(char *message, uint32_t length) {
    static struct no_result result;
    printf("message %.*s\n", (int)length, message);
    fflush(stdout);
    result.failed = result.error = 0;
    if (length == 4 && !memcmp(message, "trap", 4))
        __builtin_trap();
    if (length == 4 && !memcmp(message, "fail", 4)) {
        result.failed = result.error = 1;
        return &result;
    }
    while (length == 4 && !memcmp(message, "loop", 4))
        ;
    if (length == 5 && !memcmp(message, "sleep", 5))
        sleep(1);
    const char *server = getenv("SERVER"), *name = getenv("NAME");
    redis_set(server, strlen(server), name, strlen(name), message, length, &result);
    return &result;
}

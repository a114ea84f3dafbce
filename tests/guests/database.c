/* The interfaces of Spin with which a component reaches variables and databases.
 *
 *   database variable NAME...                       prints the value of each
 *   database sqlite NAME STATEMENT [=VALUE...]...   opens a database, and prints the rows of each statement
 *   database postgres ADDRESS STATEMENT [=VALUE...]...   the same on a server, by the version 2.0.0 of the interface
 *   database dates ADDRESS STATEMENT...             the same by the version 3.0.0
 *   database change ADDRESS STATEMENT               prints how many rows the statement changed on a PostgreSQL server
 *   database redis ADDRESS                          a round of all functions
 *   database many NAME COUNT                        opens a SQLite database so many times
 *
 * The imports are written as the component model's canonical ABI has them; see database.wit for the types.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "component.h"

#define VARIABLES "fermyon:spin/variables@2.0.0"
#define SQLITE "fermyon:spin/sqlite@2.0.0"
#define REDIS "fermyon:spin/redis@2.0.0"
#define POSTGRES "fermyon:spin/postgres@2.0.0"
#define POSTGRES_3 "spin:postgres/postgres@3.0.0"
#define TEXT const char *, size_t

typedef struct { const char *at; size_t length; } text;
/* result<T, error> for a T of at most 8 bytes without 64-bit numbers. */
typedef struct { int32_t failed; union { struct { int32_t some; text value; }; text found; handle made; }; } answer;
/* result<T, error> for a 64-bit T. */
typedef struct { int64_t failed; union { int64_t number; struct { int32_t error; text value; } why; }; } number;
/* A value of a statement or of a row. */
typedef struct { int32_t kind, unused; union { int64_t integer; int32_t word; double real; float single; text text; uint8_t parts[16]; }; } dated;
typedef struct { int32_t kind, unused; union { int64_t integer; int32_t word; double real; float single; text text; }; } value;
/* result<columns and rows, error>. */
typedef struct { int32_t failed; union { struct { const void *columns; size_t width; const struct { const void *values; size_t length; } *rows; size_t count; }; struct { int32_t error; text why; }; }; } table;

IMPORT(VARIABLES, "get") void variable(TEXT, answer *);
IMPORT(SQLITE, "[static]connection.open") void sqlite_open(TEXT, answer *);
IMPORT(SQLITE, "[method]connection.execute") void sqlite_execute(handle, TEXT, const value *, size_t, table *);
IMPORT(REDIS, "[static]connection.open") void redis_open(TEXT, answer *);
IMPORT(REDIS, "[method]connection.get") void redis_get(handle, TEXT, answer *);
IMPORT(REDIS, "[method]connection.set") void redis_set(handle, TEXT, TEXT, answer *);
IMPORT(REDIS, "[method]connection.publish") void redis_publish(handle, TEXT, TEXT, answer *);
IMPORT(REDIS, "[method]connection.incr") void redis_incr(handle, TEXT, number *);
IMPORT(REDIS, "[method]connection.del") void redis_del(handle, const text *, size_t, answer *);
IMPORT(REDIS, "[method]connection.sadd") void redis_sadd(handle, TEXT, const text *, size_t, answer *);
IMPORT(REDIS, "[method]connection.smembers") void redis_smembers(handle, TEXT, answer *);
IMPORT(REDIS, "[method]connection.srem") void redis_srem(handle, TEXT, const text *, size_t, answer *);
IMPORT(REDIS, "[method]connection.execute") void redis_execute(handle, TEXT, const value *, size_t, answer *);
IMPORT(REDIS, "[resource-drop]connection") void drop_redis(handle);
IMPORT(POSTGRES, "[static]connection.open") void postgres_open(TEXT, answer *);
IMPORT(POSTGRES, "[method]connection.query") void postgres_query(handle, TEXT, const value *, size_t, table *);
IMPORT(POSTGRES, "[method]connection.execute") void postgres_execute(handle, TEXT, const value *, size_t, number *);
IMPORT(POSTGRES_3, "[static]connection.open") void dates_open(TEXT, answer *);
IMPORT(POSTGRES_3, "[method]connection.query") void dates_query(handle, TEXT, const dated *, size_t, table *);

static const char *const sqlite_errors[] = {"no such database", "access denied", "invalid connection", "database full", NULL};
static const char *const redis_errors[] = {"invalid address", "too many connections", "type error", NULL};
static const char *const postgres_errors[] = {NULL, NULL, NULL, NULL, NULL};
static const char *const postgres_kinds[] = {"connection failed", "bad parameter", "query failed", "value conversion failed", "other"};

static void failed(const char *operation, const char *const *names, int32_t error, text why) {
    const char *name = names[error & 0xff];
    if (name)
        fprintf(stderr, "%s: %s\n", operation, name);
    else if (names == postgres_errors)
        fprintf(stderr, "%s: %s: %.*s\n", operation, postgres_kinds[error & 0xff], (int)why.length, why.at);
    else
        fprintf(stderr, "%s: %.*s\n", operation, (int)why.length, why.at);
    exit(1);
}

static void check(const char *operation, const char *const *names, const answer *result) {
    if (result->failed & 0xff)
        failed(operation, names, result->some, result->value);
}

static void check_table(const char *operation, const char *const *names, const table *result) {
    if (result->failed & 0xff)
        failed(operation, names, result->error, result->why);
}

static text of(const char *string) {
    return (text){string, strlen(string)};
}

static void print_sqlite(const value *column) {
    switch (column->kind & 0xff) {
    case 0: printf("%lld", column->integer); break;
    case 1: printf("%g", column->real); break;
    case 4: printf("null"); break;
    default: printf("%.*s", (int)column->text.length, column->text.at);
    }
}

static void print_postgres(const value *column) {
    switch (column->kind & 0xff) {
    case 0: printf("%s", column->word & 0xff ? "true" : "false"); break;
    case 1: printf("%d", (int8_t)column->word); break;
    case 2: printf("%d", (int16_t)column->word); break;
    case 3: printf("%d", column->word); break;
    case 4: printf("%lld", column->integer); break;
    case 9: printf("%g", column->single); break;
    case 10: printf("%g", column->real); break;
    case 11: case 12: printf("%.*s", (int)column->text.length, column->text.at); break;
    case 13: printf("null"); break;
    default: printf("unsupported");
    }
}

static void print_dated(const dated *column) {
    int32_t year, late;
    memcpy(&year, column->parts, 4);
    memcpy(&late, column->parts + 12, 4);
    switch (column->kind & 0xff) {
    case 3: printf("%d", column->word); break;
    case 7: printf("%.*s", (int)column->text.length, column->text.at); break;
    case 9: printf("%d-%d-%d", year, column->parts[4], column->parts[5]); break;
    case 10: printf("%d:%d:%d", column->parts[0], column->parts[1], column->parts[2]); break;
    case 11: printf("%d-%d-%d %d:%d:%d.%d", year, column->parts[4], column->parts[5], column->parts[6], column->parts[7], column->parts[8], late); break;
    case 13: printf("null"); break;
    default: printf("unsupported");
    }
}

/* The values after a statement: those that begin with `=`. */
static size_t values(char **next, value *all, int32_t kind) {
    size_t count = 0;
    for (; next[count] && next[count][0] == '='; count++)
        all[count] = (value){.kind = kind, .text = of(next[count] + 1)};
    return count;
}

static void statements(char **next, handle connection, int is_sqlite) {
    while (*next) {
        value all[16];
        const char *statement = *next++;
        size_t count = values(next, all, is_sqlite ? 2 : 11);
        next += count;
        table found;
        (is_sqlite ? sqlite_execute : postgres_query)(connection, statement, strlen(statement), all, count, &found);
        check_table("execute", is_sqlite ? sqlite_errors : postgres_errors, &found);
        for (size_t row = 0; row < found.count; row++)
            for (size_t column = 0; column < found.rows[row].length; column++) {
                const value *values = found.rows[row].values;
                (is_sqlite ? print_sqlite : print_postgres)(values + column);
                putchar(column + 1 < found.rows[row].length ? '|' : '\n');
            }
    }
}

static void dates(char **next, handle connection) {
    for (; *next; next++) {
        table found;
        dates_query(connection, *next, strlen(*next), NULL, 0, &found);
        check_table("query", postgres_errors, &found);
        for (size_t row = 0; row < found.count; row++)
            for (size_t column = 0; column < found.rows[row].length; column++) {
                const dated *values = found.rows[row].values;
                print_dated(values + column);
                putchar(column + 1 < found.rows[row].length ? '|' : '\n');
            }
    }
}

static void redis_round(handle connection) {
    answer done;
    number counted;
    text members[2] = {of("x"), of("y")}, keys[2] = {of("set"), of("n")};
    redis_set(connection, "k", 1, "v", 1, &done);
    check("set", redis_errors, &done);
    redis_get(connection, "k", 1, &done);
    check("get", redis_errors, &done);
    printf("%.*s\n", (int)done.value.length, done.value.at);
    redis_get(connection, "absent", 6, &done);
    check("get", redis_errors, &done);
    printf("%d\n", done.some & 0xff);
    redis_incr(connection, "n", 1, &counted);
    redis_incr(connection, "n", 1, &counted);
    printf("%lld\n", counted.number);
    redis_sadd(connection, "set", 3, members, 2, &done);
    check("sadd", redis_errors, &done);
    printf("%d\n", done.some);
    redis_srem(connection, "set", 3, members, 1, &done);
    check("srem", redis_errors, &done);
    redis_smembers(connection, "set", 3, &done);
    check("smembers", redis_errors, &done);
    const text *found = (const text *)done.found.at;
    printf("%zu %.*s\n", done.found.length, (int)found[0].length, found[0].at);
    redis_publish(connection, "channel", 7, "news", 4, &done);
    check("publish", redis_errors, &done);
    value words[3] = {{.kind = 1, .text = of("list")}, {.kind = 1, .text = of("a")}, {.kind = 0, .integer = -5}};
    redis_execute(connection, "RPUSH", 5, words, 3, &done);
    check("execute", redis_errors, &done);
    const value *results = (const value *)done.found.at;
    printf("%zu %d %lld\n", done.found.length, results[0].kind & 0xff, results[0].integer);
    value range[3] = {{.kind = 1, .text = of("list")}, {.kind = 0, .integer = 0}, {.kind = 0, .integer = -1}};
    redis_execute(connection, "LRANGE", 6, range, 3, &done);
    check("execute", redis_errors, &done);
    results = (const value *)done.found.at;
    printf("%zu %d %.*s\n", done.found.length, results[1].kind & 0xff, (int)results[1].text.length, results[1].text.at);
    redis_del(connection, keys, 2, &done);
    check("del", redis_errors, &done);
    printf("%d\n", done.some);
    redis_incr(connection, "list", 4, &counted);
    if (counted.failed & 0xff)
        failed("incr", redis_errors, counted.why.error, counted.why.value);
}

int main(int argc, char **argv) {
    /* The linker makes each export of a command, as cabi_realloc, flush stdout; there the host cannot be called. */
    setvbuf(stdout, NULL, _IONBF, 0);
    answer done;
    const char *verb = argv[1], *name = argv[2];
    if (!strcmp(verb, "variable")) {
        for (int i = 2; i < argc; i++) {
            variable(argv[i], strlen(argv[i]), &done);
            if (done.failed & 0xff) {
                fprintf(stderr, "%d: %.*s\n", done.some & 0xff, (int)done.value.length, done.value.at);
                return 1;
            }
            printf("%.*s\n", (int)done.found.length, done.found.at);
        }
    } else if (!strcmp(verb, "sqlite")) {
        sqlite_open(name, strlen(name), &done);
        check("open", sqlite_errors, &done);
        statements(argv + 3, done.made, 1);
    } else if (!strcmp(verb, "many")) {
        for (int i = 0; i < atoi(argv[3]); i++) {
            sqlite_open(name, strlen(name), &done);
            check("open", sqlite_errors, &done);
        }
        printf("opened\n");
    } else if (!strcmp(verb, "redis")) {
        redis_open(name, strlen(name), &done);
        check("open", redis_errors, &done);
        redis_round(done.made);
        drop_redis(done.made);
    } else if (!strcmp(verb, "dates")) {
        dates_open(name, strlen(name), &done);
        check("open", postgres_errors, &done);
        dates(argv + 3, done.made);
    } else {
        postgres_open(name, strlen(name), &done);
        check("open", postgres_errors, &done);
        if (!strcmp(verb, "postgres")) {
            statements(argv + 3, done.made, 0);
        } else {
            number changed;
            postgres_execute(done.made, argv[3], strlen(argv[3]), NULL, 0, &changed);
            if (changed.failed & 0xff)
                failed("execute", postgres_errors, changed.why.error, changed.why.value);
            printf("%lld\n", changed.number);
        }
    }
    return 0;
}

/* wasi:config and wasi:keyvalue, under their older and newer names.
 *
 *   store config                     prints all values, as KEY=VALUE, sorted by the host
 *   store config KEY...              prints the value of each key, or (none); the first by the older name
 *   store NAME VERB ARGUMENT...      opens the store NAME and does these, one after the other:
 *     set KEY VALUE, get KEY, delete KEY, exists KEY, keys, count KEY NUMBER
 *     swap KEY VALUE                 replaces the value that the key has now
 *     late-swap KEY OTHER VALUE      the same after the value has been changed to OTHER meanwhile
 *     many KEY VALUE KEY VALUE       sets both at once, and prints both at once
 *     older KEY VALUE                sets, lists, counts and gets by the older name
 *     fill KEY MEBIBYTES             sets so many values of one mebibyte
 *
 * The imports are written as the component model's canonical ABI has them; see store.wit for the types.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "component.h"

#define CONFIG "wasi:config/store@0.2.0-rc.1"
#define OLD_CONFIG "wasi:config/store@0.2.0-draft-2024-09-27"
#define STORE "wasi:keyvalue/store@0.2.0-draft2"
#define BATCH "wasi:keyvalue/batch@0.2.0-draft2"
#define ATOMICS "wasi:keyvalue/atomics@0.2.0-draft2"
#define OLD_STORE "wasi:keyvalue/store@0.2.0-draft"
#define OLD_ATOMICS "wasi:keyvalue/atomics@0.2.0-draft"
#define TEXT const char *, size_t

typedef struct { const char *at; size_t length; } text;

/* result<T, error> for a T of at most 8 bytes without 64-bit numbers, where T's option has its case first. */
typedef struct { int32_t failed, some; text value; } answer;
/* result<T, error> for a 64-bit T. */
typedef struct { int64_t failed; union { int64_t number; struct { int32_t error; text value; } why; }; } number;

IMPORT(CONFIG, "get") void config_get(TEXT, answer *);
IMPORT(CONFIG, "get-all") void config_all(answer *);
IMPORT(OLD_CONFIG, "get") void old_config_get(TEXT, answer *);
IMPORT(STORE, "open") void store_open(TEXT, answer *);
IMPORT(STORE, "[method]bucket.get") void bucket_get(handle, TEXT, answer *);
IMPORT(STORE, "[method]bucket.set") void bucket_set(handle, TEXT, TEXT, answer *);
IMPORT(STORE, "[method]bucket.delete") void bucket_delete(handle, TEXT, answer *);
IMPORT(STORE, "[method]bucket.exists") void bucket_exists(handle, TEXT, answer *);
IMPORT(STORE, "[method]bucket.list-keys") void bucket_keys(handle, int32_t, TEXT, void *);
IMPORT(STORE, "[resource-drop]bucket") void drop_bucket(handle);
IMPORT(BATCH, "get-many") void get_many(handle, const text *, size_t, answer *);
IMPORT(BATCH, "set-many") void set_many(handle, const text *, size_t, answer *);
IMPORT(ATOMICS, "increment") void increment(handle, TEXT, int64_t, number *);
IMPORT(ATOMICS, "[static]cas.new") void cas_new(handle, TEXT, answer *);
IMPORT(ATOMICS, "[method]cas.current") void cas_current(handle, answer *);
IMPORT(ATOMICS, "swap") void swap(handle, TEXT, void *);
IMPORT(ATOMICS, "[resource-drop]cas") void drop_cas(handle);
IMPORT(OLD_STORE, "open") void old_open(TEXT, answer *);
IMPORT(OLD_STORE, "[method]bucket.get") void old_get(handle, TEXT, answer *);
IMPORT(OLD_STORE, "[method]bucket.set") void old_set(handle, TEXT, TEXT, answer *);
IMPORT(OLD_STORE, "[method]bucket.list-keys") void old_keys(handle, int32_t, int64_t, void *);
IMPORT(OLD_ATOMICS, "increment") void old_increment(handle, TEXT, int64_t, number *);

static const char *const errors[] = {"no such store", "access denied", "other"};

static void failed(const char *operation, int32_t error, text why) {
    if ((error & 0xff) == 2)
        fprintf(stderr, "%s: %.*s\n", operation, (int)why.length, why.at);
    else
        fprintf(stderr, "%s: %s\n", operation, errors[error & 0xff]);
    exit(1);
}

static void check(const char *operation, const answer *result) {
    if (result->failed & 0xff)
        failed(operation, result->some, result->value);
}

static void check_number(const char *operation, const number *result) {
    if (result->failed & 0xff)
        failed(operation, result->why.error, result->why.value);
}

static void print(const answer *result) {
    if (result->some & 0xff)
        printf("%.*s\n", (int)result->value.length, result->value.at);
    else
        printf("(none)\n");
}

static void check_config(const answer *result) {
    if (result->failed & 0xff) {
        fprintf(stderr, "config: %.*s\n", (int)result->value.length, result->value.at);
        exit(1);
    }
}

static int config(int count, char **keys) {
    answer found;
    if (count == 0) {
        config_all(&found);
        check_config(&found);
        struct { int32_t failed; const text *all; size_t length; } *all = (void *)&found;
        for (size_t i = 0; i < all->length; i++)
            printf("%.*s=%.*s\n", (int)all->all[2 * i].length, all->all[2 * i].at, (int)all->all[2 * i + 1].length, all->all[2 * i + 1].at);
        return 0;
    }
    for (int i = 0; i < count; i++) {
        (i ? config_get : old_config_get)(keys[i], strlen(keys[i]), &found);
        check_config(&found);
        print(&found);
    }
    return 0;
}

/* All keys, in parts. */
static void print_keys(handle bucket) {
    struct { int32_t failed; union { struct { const text *keys; size_t length; int32_t more; text cursor; }; struct { int32_t error; text why; }; }; } part;
    part.more = 0;
    part.cursor = (text){0};
    size_t total = 0;
    do {
        bucket_keys(bucket, part.more & 0xff, part.cursor.at, part.cursor.length, &part);
        if (part.failed & 0xff)
            failed("keys", part.error, part.why);
        total += part.length;
        if (total <= 16)
            for (size_t i = 0; i < part.length; i++)
                printf("%.*s\n", (int)part.keys[i].length, part.keys[i].at);
    } while (part.more & 0xff);
    printf("%zu keys\n", total);
}

static int64_t count(handle bucket, const char *key, int64_t delta) {
    number counted;
    increment(bucket, key, strlen(key), delta, &counted);
    check_number("count", &counted);
    return counted.number;
}

static void set(handle bucket, const char *key, const char *value, size_t length) {
    answer done;
    bucket_set(bucket, key, strlen(key), value, length, &done);
    check("set", &done);
}

static void compare_and_swap(handle bucket, const char *key, const char *meanwhile, const char *value) {
    answer done;
    cas_new(bucket, key, strlen(key), &done);
    check("cas", &done);
    handle cas = done.some;
    cas_current(cas, &done);
    check("current", &done);
    print(&done);
    if (meanwhile)
        set(bucket, key, meanwhile, strlen(meanwhile));
    struct { int32_t failed, kind; union { handle cas; int32_t error; }; text why; } swapped;
    swap(cas, value, strlen(value), &swapped);
    if (!(swapped.failed & 0xff)) {
        printf("swapped\n");
        return;
    }
    if (!(swapped.kind & 0xff))
        failed("swap", swapped.error, swapped.why);
    printf("not swapped: ");
    cas_current(swapped.cas, &done);
    check("current", &done);
    print(&done);
    drop_cas(swapped.cas);
}

static void many(handle bucket, char **pairs) {
    text all[4];
    for (int i = 0; i < 4; i++)
        all[i] = (text){pairs[i], strlen(pairs[i])};
    answer done;
    set_many(bucket, all, 2, &done);
    check("set-many", &done);
    text keys[2] = {all[0], all[2]};
    get_many(bucket, keys, 2, &done);
    check("get-many", &done);
    struct { int32_t failed; const struct { text key; int32_t some; text value; } *all; size_t length; } *found = (void *)&done;
    for (size_t i = 0; i < found->length; i++)
        printf("%.*s=%.*s\n", (int)found->all[i].key.length, found->all[i].key.at, (int)found->all[i].value.length, found->all[i].value.at);
}

static void older(const char *name, const char *key, const char *value) {
    answer done;
    old_open(name, strlen(name), &done);
    check("open", &done);
    handle bucket = done.some;
    old_set(bucket, key, strlen(key), value, strlen(value), &done);
    check("set", &done);
    old_get(bucket, key, strlen(key), &done);
    check("get", &done);
    print(&done);
    struct { int64_t failed; const text *keys; size_t length; int64_t more, cursor; } part;
    old_keys(bucket, 0, 0, &part);
    printf("%zu keys\n", (part.failed & 0xff) ? 0 : part.length);
    number counted;
    old_increment(bucket, "older-count", 11, 3, &counted);
    check_number("count", &counted);
    printf("%lld\n", counted.number);
}

static void fill(handle bucket, const char *key, int mebibytes) {
    char name[64];
    char *value = calloc(1, 1 << 20);
    for (int i = 0; i < mebibytes; i++) {
        size_t kept = taken;
        snprintf(name, sizeof name, "%s %d", key, i);
        set(bucket, name, value, 1 << 20);
        taken = kept;
    }
    printf("filled\n");
}

int main(int argc, char **argv) {
    /* The linker makes each export of a command, as cabi_realloc, flush stdout; there the host cannot be called. */
    setvbuf(stdout, NULL, _IONBF, 0);
    if (argc > 1 && !strcmp(argv[1], "config"))
        return config(argc - 2, argv + 2);
    answer done;
    store_open(argv[1], strlen(argv[1]), &done);
    check("open", &done);
    handle bucket = done.some;
    for (char **next = argv + 2; *next;) {
        const char *verb = *next++, *key = *next;
        if (!strcmp(verb, "keys")) {
            print_keys(bucket);
        } else if (!strcmp(verb, "many")) {
            many(bucket, next);
            next += 4;
        } else if (!strcmp(verb, "late-swap")) {
            compare_and_swap(bucket, key, next[1], next[2]);
            next += 3;
        } else if (!strcmp(verb, "get")) {
            bucket_get(bucket, key, strlen(key), &done);
            check(verb, &done);
            print(&done);
            next += 1;
        } else if (!strcmp(verb, "delete")) {
            bucket_delete(bucket, key, strlen(key), &done);
            check(verb, &done);
            next += 1;
        } else if (!strcmp(verb, "exists")) {
            bucket_exists(bucket, key, strlen(key), &done);
            check(verb, &done);
            printf("%s\n", done.some & 0xff ? "yes" : "no");
            next += 1;
        } else {
            const char *value = next[1];
            next += 2;
            if (!strcmp(verb, "set"))
                set(bucket, key, value, strlen(value));
            else if (!strcmp(verb, "count"))
                printf("%lld\n", count(bucket, key, atoll(value)));
            else if (!strcmp(verb, "swap"))
                compare_and_swap(bucket, key, NULL, value);
            else if (!strcmp(verb, "older"))
                older(argv[1], key, value);
            else if (!strcmp(verb, "fill"))
                fill(bucket, key, atoi(value));
            else
                return fprintf(stderr, "no verb %s\n", verb), 2;
        }
    }
    drop_bucket(bucket);
    return 0;
}

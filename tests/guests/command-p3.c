/* A command of WASI 0.3, controlled by its environment:
 *
 *   NAME=host   prints its IPv4 addresses, or `error` and the number of the error
 *   FILE=path   prints its beginning
 *   FAIL=1      ends with an error
 *   WAIT=ms     waits first
 *
 * Its run, its clock and its names are WASI 0.3's; its files and its output are preview 1's, by the adapter.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "component.h"

IMPORT("wasi:clocks/monotonic-clock@0.3.0", "wait-for") void wait_for(int64_t ns);
IMPORT("wasi:sockets/ip-name-lookup@0.3.0", "resolve-addresses") void resolve(const char *, size_t, void *result);

/* A variant of 18 bytes, of which an IPv4 address takes 4 at 2. */
struct address {
    uint16_t which;
    uint8_t bytes[16];
};

static int look_up(const char *name) {
    struct { uint8_t failed; const struct address *all; uint32_t count; } found;
    resolve(name, strlen(name), &found);
    if (found.failed) {
        printf("error %d\n", *(uint8_t *)&found.all);
        return 1;
    }
    for (uint32_t i = 0; i < found.count; i++)
        if ((found.all[i].which & 0xff) == 0)
            printf("%d.%d.%d.%d\n", found.all[i].bytes[0], found.all[i].bytes[1], found.all[i].bytes[2], found.all[i].bytes[3]);
    return 0;
}

__attribute__((export_name("wasi:cli/run@0.3.0#run"))) int32_t run(void) {
    const char *name = getenv("NAME"), *file = getenv("FILE"), *wait = getenv("WAIT");
    if (wait)
        wait_for(atoll(wait) * 1000000);
    int32_t failed = getenv("FAIL") != 0;
    if (name)
        failed |= look_up(name);
    if (file) {
        char text[256] = "";
        FILE *open = fopen(file, "r");
        failed |= !open || !fgets(text, sizeof text, open);
        printf("%s", text);
    }
    puts("done");
    fflush(stdout);
    return failed;
}

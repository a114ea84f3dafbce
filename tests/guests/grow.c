/* Takes memory, MiB by MiB, and touches it: as many MiB as its argument says, or until it is refused.
 * Prints the number of MiB, and keeps them as many seconds as the second argument says. Ends with 9 if it was refused
 * memory, or aborts if its second argument is `abort`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int main(int argc, char **argv) {
    int wanted = argc > 1 ? atoi(argv[1]) : 1 << 20;
    int got = 0;
    while (got < wanted) {
        /* volatile: otherwise the compiler drops the allocation, as the program never reads it. */
        char *volatile block = malloc(1 << 20);
        if (!block)
            break;
        memset(block, 1, 1 << 20);
        got++;
    }
    if (got < wanted && argc > 2 && !strcmp(argv[2], "abort"))
        abort();
    printf("got %d MiB\n", got);
    fflush(stdout);
    const struct timespec hold = {.tv_sec = argc > 2 ? atoi(argv[2]) : 0};
    nanosleep(&hold, NULL);
    return got < wanted ? 9 : 0;
}

/* Prints the wall clock (s), whether the monotonic clock goes on, and 32 random bytes. */
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    struct timespec wall, before, after;
    unsigned char bytes[32];
    if (clock_gettime(CLOCK_REALTIME, &wall) || clock_gettime(CLOCK_MONOTONIC, &before))
        return 1;
    do {
        if (clock_gettime(CLOCK_MONOTONIC, &after))
            return 1;
    } while (after.tv_sec == before.tv_sec && after.tv_nsec == before.tv_nsec);
    if (getentropy(bytes, sizeof bytes))
        return 1;
    printf("wall %lld\nmonotonic %s\nrandom ", (long long)wall.tv_sec,
           after.tv_sec >= before.tv_sec ? "forward" : "backward");
    for (unsigned i = 0; i < sizeof bytes; i++)
        printf("%02x", bytes[i]);
    puts("");
    return 0;
}

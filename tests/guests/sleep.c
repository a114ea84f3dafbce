/* Sleeps as many seconds as its argument says, then ends with 0. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    struct timespec left = {.tv_sec = argc > 1 ? atoi(argv[1]) : 3600};
    puts("asleep");
    fflush(stdout);
    return nanosleep(&left, NULL) == 0 ? 0 : 1;
}

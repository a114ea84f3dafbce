/* Waits until the file named by its first argument is there, then ends with the code of the second. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

int main(int argc, char **argv) {
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    struct stat status;
    if (argc < 3)
        return 200;
    puts("waiting");
    fflush(stdout);
    while (stat(argv[1], &status) != 0)
        nanosleep(&pause, NULL);
    return atoi(argv[2]);
}

/* Computes for ever, without a single call that leaves the program. */
#include <stdio.h>

int main(void) {
    volatile unsigned turn = 0;
    puts("spinning");
    fflush(stdout);
    for (;;)
        turn++;
}

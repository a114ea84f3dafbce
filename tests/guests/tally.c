/* Counts the lines of stdin, telling each count at once: shows that stdin and stdout stay connected. */
#include <stdio.h>

int main(void) {
    int character, lines = 0;
    while ((character = getchar()) != EOF) {
        if (character == '\n') {
            printf("line %d\n", ++lines);
            fflush(stdout);
        }
    }
    printf("end after %d\n", lines);
    return 0;
}

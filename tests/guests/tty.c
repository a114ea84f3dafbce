/* Prints which of its streams are terminals, then answers each line of stdin until its end. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void) {
    char line[256];
    printf("terminals %d%d%d\n", isatty(0), isatty(1), isatty(2));
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        printf("got <%s>\n", line);
        fflush(stdout);
    }
    fputs("the end\n", stderr);
    return 6;
}

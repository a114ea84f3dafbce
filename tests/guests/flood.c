/* Writes to stdout for ever; ends with 3 if that fails. */
#include <string.h>
#include <unistd.h>

static char line[4096];

int main(void) {
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (;;)
        if (write(1, line, sizeof line) < 0)
            return 3;
}

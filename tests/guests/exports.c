/* A command with an entry point beside _start. */
#include <stdio.h>

__attribute__((export_name("greet"))) void greet(void) {
    puts("greet was called");
    fflush(stdout);
}

int main(void) {
    puts("main was called");
    return 0;
}

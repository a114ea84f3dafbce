/* A reactor, without _start: _initialize runs the constructors, then `serve` can be called. */
#include <stdio.h>

static const char *state = "not initialised";

__attribute__((constructor)) static void construct(void) {
    state = "initialised";
}

__attribute__((export_name("serve"))) void serve(void) {
    printf("reactor: %s\n", state);
    fflush(stdout);
}

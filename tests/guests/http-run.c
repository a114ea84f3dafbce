/* The second export of the HTTP service in http.c: the entry point of a command. */
__attribute__((export_name("wasi:cli/run@0.2.0#run"))) int32_t run(void) {
    puts("ran");
    fflush(stdout);
    return 0;
}

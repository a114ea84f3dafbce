/* Prints its arguments, environment and working directory. */
#include <stdio.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
    char directory[4096];
    puts("hello from C");
    for (int i = 0; i < argc; i++)
        printf("arg %d: %s\n", i, argv[i]);
    for (char **variable = environ; *variable; variable++)
        printf("env %s\n", *variable);
    if (getcwd(directory, sizeof directory))
        printf("cwd %s\n", directory);
    fputs("hello on stderr\n", stderr);
    return 0;
}

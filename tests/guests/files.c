/* Does one thing with files, and ends with errno if that fails:
 * read PATH | await PATH TEXT (until that is all it has) | write PATH TEXT | append PATH TEXT | list PATH | mkdir PATH | remove PATH | size PATH */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what) {
    int error = errno;
    fprintf(stderr, "%s: %s\n", what, strerror(error));
    return error;
}

static int copy_out(const char *path) {
    char buffer[4096];
    size_t length;
    FILE *file = fopen(path, "r");
    if (!file)
        return fail(path);
    while ((length = fread(buffer, 1, sizeof buffer, file)) > 0)
        fwrite(buffer, 1, length, stdout);
    return ferror(file) ? fail(path) : 0;
}

static int await(const char *path, const char *text) {
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    for (;;) {
        char found[4096] = "";
        FILE *file = fopen(path, "r");
        if (!file)
            return fail(path);
        found[fread(found, 1, sizeof found - 1, file)] = 0;
        fclose(file);
        if (!strcmp(found, text))
            return 0;
        nanosleep(&pause, NULL);
    }
}

static int put(const char *path, const char *mode, const char *text) {
    FILE *file = fopen(path, mode);
    if (!file)
        return fail(path);
    if (fputs(text, file) < 0 || fclose(file) != 0)
        return fail(path);
    return 0;
}

static int list(const char *path) {
    struct dirent *entry;
    DIR *directory = opendir(path);
    if (!directory)
        return fail(path);
    while ((entry = readdir(directory)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            puts(entry->d_name);
    return 0;
}

static int size(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0)
        return fail(path);
    printf("%lld\n", (long long)status.st_size);
    return 0;
}

int main(int argc, char **argv) {
    const char *verb = argc > 2 ? argv[1] : "";
    if (!strcmp(verb, "read"))
        return copy_out(argv[2]);
    if (!strcmp(verb, "list"))
        return list(argv[2]);
    if (!strcmp(verb, "size"))
        return size(argv[2]);
    if (!strcmp(verb, "mkdir"))
        return mkdir(argv[2], 0755) ? fail(argv[2]) : 0;
    if (!strcmp(verb, "remove"))
        return remove(argv[2]) ? fail(argv[2]) : 0;
    if (!strcmp(verb, "await") && argc > 3) {
        puts("waiting");
        fflush(stdout);
        return await(argv[2], argv[3]);
    }
    if (!strcmp(verb, "write") && argc > 3)
        return put(argv[2], "w", argv[3]);
    if (!strcmp(verb, "append") && argc > 3)
        return put(argv[2], "a", argv[3]);
    fputs("files: read|await|write|append|list|mkdir|remove|size PATH [TEXT]\n", stderr);
    return 200;
}

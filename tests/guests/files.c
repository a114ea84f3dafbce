/* Runs verbs on files, one after the other, separated by arguments that are just a comma. It ends with errno at the
 * first verb that fails:
 * read PATH | await PATH TEXT (until that is all it has) | write PATH TEXT | append PATH TEXT | list PATH |
 * mkdir PATH | remove PATH | size PATH | touch PATH | kind PATH (of a link, too) | target PATH |
 * link TARGET PATH (symbolic) | twin PATH NEW (a hard link) | move PATH NEW |
 * hunt PATH N (reads it N times, prints each new content, ignores failures) |
 * hoard PATH N (opens it up to N times, prints how often it could, closes all) | hold PATH N (the same, but
 * fails if it cannot, and closes none) | time PATH N (opens, reads and closes it N times, prints nanoseconds for each) |
 * try ... (any of these: prints "ok" or the error, and goes on) */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *path) {
    int error = errno;
    fprintf(stderr, "%s: %s\n", path, strerror(error));
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
    int error = ferror(file) ? fail(path) : 0;
    fclose(file);
    return error;
}

static int await(const char *path, const char *text) {
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    for (;;) {
        char found[4096] = "";
        FILE *file = fopen(path, "r");
        if (!file && errno != ENOENT)
            return fail(path);
        if (file)
            found[fread(found, 1, sizeof found - 1, file)] = 0;
        if (file)
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

static int kind(const char *path) {
    struct stat status;
    if (lstat(path, &status) != 0)
        return fail(path);
    puts(S_ISLNK(status.st_mode) ? "link" : S_ISDIR(status.st_mode) ? "directory" : "file");
    return 0;
}

static int target(const char *path) {
    char text[4096];
    ssize_t length = readlink(path, text, sizeof text - 1);
    if (length < 0)
        return fail(path);
    text[length] = 0;
    puts(text);
    return 0;
}

/* Opens it, reads its first bytes, closes it; how many. */
static ssize_t look(const char *path, char *text, size_t room) {
    int file = open(path, O_RDONLY);
    if (file < 0)
        return -1;
    ssize_t length = read(file, text, room);
    close(file);
    return length;
}

static int hunt(const char *path, long times) {
    char text[64], last[64] = "";
    while (times-- > 0) {
        ssize_t length = look(path, text, sizeof text - 1);
        if (length < 0)
            continue;
        text[length] = 0;
        if (strcmp(text, last))
            puts(strcpy(last, text));
    }
    return 0;
}

static long open_many(const char *path, long times, int *files) {
    long opened = 0;
    while (opened < times && (files[opened] = open(path, O_RDONLY)) >= 0)
        opened++;
    return opened;
}

static int hoard(const char *path, long times) {
    static int files[1024];
    long opened = open_many(path, times < 1024 ? times : 1024, files);
    printf("%ld\n", opened);
    while (opened > 0)
        close(files[--opened]);
    return 0;
}

static int hold(const char *path, long times) {
    static int files[1024];
    return open_many(path, times < 1024 ? times : 1024, files) < times ? fail(path) : 0;
}

static int measure(const char *path, long times) {
    char text[64];
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (long n = 0; n < times; n++)
        if (look(path, text, sizeof text) < 0)
            return fail(path);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%lld\n", ((ended.tv_sec - began.tv_sec) * 1000000000LL + ended.tv_nsec - began.tv_nsec) / times);
    return 0;
}

static int wait_for(const char *path, const char *text) {
    puts("waiting");
    fflush(stdout);
    return await(path, text);
}

static int done(int result, const char *path) {
    return result ? fail(path) : 0;
}

/* Only the owner may set a given time; a user with write access may set the current one. */
static int touch(const char *path) {
    const struct timespec times[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    return done(utimensat(AT_FDCWD, path, times, 0), path);
}

static int act(int count, char **words) {
    const char *verb = words[0], *path = count > 1 ? words[1] : "", *more = count > 2 ? words[2] : "";
    if (!strcmp(verb, "try") && count > 1) {
        int error = act(count - 1, words + 1);
        printf("%s\n", error ? strerror(error) : "ok");
        return 0;
    }
    if (!strcmp(verb, "read"))
        return copy_out(path);
    if (!strcmp(verb, "list"))
        return list(path);
    if (!strcmp(verb, "size"))
        return size(path);
    if (!strcmp(verb, "kind"))
        return kind(path);
    if (!strcmp(verb, "target"))
        return target(path);
    if (!strcmp(verb, "mkdir"))
        return done(mkdir(path, 0755), path);
    if (!strcmp(verb, "remove"))
        return done(remove(path), path);
    if (!strcmp(verb, "touch"))
        return touch(path);
    if (!strcmp(verb, "link"))
        return done(symlink(path, more), more);
    if (!strcmp(verb, "twin"))
        return done(link(path, more), path);
    if (!strcmp(verb, "move"))
        return done(rename(path, more), path);
    if (!strcmp(verb, "hunt"))
        return hunt(path, atol(more));
    if (!strcmp(verb, "hoard"))
        return hoard(path, atol(more));
    if (!strcmp(verb, "hold"))
        return hold(path, atol(more));
    if (!strcmp(verb, "time"))
        return measure(path, atol(more));
    if (!strcmp(verb, "await"))
        return wait_for(path, more);
    if (!strcmp(verb, "write"))
        return put(path, "w", more);
    if (!strcmp(verb, "append"))
        return put(path, "a", more);
    fprintf(stderr, "files: no verb %s\n", verb);
    return 200;
}

int main(int argc, char **argv) {
    int from = 1, error = 0;
    for (int at = 1; at <= argc && !error; at++)
        if (at == argc || !strcmp(argv[at], ",")) {
            if (at > from)
                error = act(at - from, argv + from);
            from = at + 1;
        }
    return error;
}

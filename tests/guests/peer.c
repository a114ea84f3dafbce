/* A native program, for pods with native and Wasm containers. It observes its surroundings by Linux's own means.
 *
 *   peer fetch PORT     connects to the pod's loopback, sends "hello", prints the answer
 *   peer where          prints the host name, the inodes of its namespaces, its pid, OOM score and control groups
 *   peer sleep          prints "asleep" and sleeps
 *   peer orphan         leaves a process to the first of its pid namespace, and prints "reaped" once it is gone
 *   peer signal WORD    sends SIGTERM to the process that has WORD as an argument, and prints "sent"
 *   peer look           tries to read files of the first process of its pid namespace, prints each result, and kills it
 *   peer sysctl NAME    prints a kernel setting, e.g. net/core/somaxconn
 *   peer mount PATH     mounts a tmpfs with a file "inside" at PATH, prints "mounted" and sleeps
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int fetch(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    if (peer < 0 || connect(peer, (struct sockaddr *)&at, sizeof at) || write(peer, "hello", 5) != 5) {
        perror("fetch");
        return 1;
    }
    char answer[1024];
    for (ssize_t length; (length = read(peer, answer, sizeof answer)) > 0;)
        fwrite(answer, 1, (size_t)length, stdout);
    return 0;
}

/* The lines of a file, each after `name`. */
static int print_lines(const char *name, const char *path) {
    char line[4096];
    FILE *file = fopen(path, "r");
    if (!file) {
        perror(path);
        return 1;
    }
    while (fgets(line, sizeof line, file))
        printf("%s%s", name, line);
    fclose(file);
    return 0;
}

static int where(void) {
    char name[256];
    if (gethostname(name, sizeof name))
        return 1;
    printf("host %s\n", name);
    static const char *const namespaces[] = {"ipc", "mnt", "net", "pid", "uts"};
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
        char path[64];
        struct stat file;
        snprintf(path, sizeof path, "/proc/self/ns/%s", namespaces[i]);
        if (stat(path, &file))
            return 1;
        printf("%s %llu\n", namespaces[i], (unsigned long long)file.st_ino);
    }
    printf("self %d\n", getpid());
    return print_lines("oom_score_adj ", "/proc/self/oom_score_adj") || print_lines("cgroup ", "/proc/self/cgroup");
}

static void short_pause(void) {
    nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
}

static int orphan(void) {
    int told[2];
    if (pipe(told))
        return 1;
    pid_t child = fork();
    if (child == 0) {
        pid_t child_of = getpid(), grandchild = fork();
        if (grandchild == 0) {
            /* Not before its parent. */
            while (getppid() == child_of)
                short_pause();
            _exit(0);
        }
        _exit(write(told[1], &grandchild, sizeof grandchild) != sizeof grandchild);
    }
    pid_t grandchild;
    if (child < 0 || waitpid(child, NULL, 0) != child || read(told[0], &grandchild, sizeof grandchild) < 0)
        return 1;
    for (int tries = 0; tries < 1000; tries++) {
        /* A zombie can be signalled, too. */
        if (kill(grandchild, 0) && errno == ESRCH) {
            printf("reaped\n");
            return 0;
        }
        short_pause();
    }
    printf("left\n");
    return 1;
}

static int send_term(const char *word) {
    DIR *all = opendir("/proc");
    if (!all)
        return 1;
    for (struct dirent *entry; (entry = readdir(all));) {
        int pid = atoi(entry->d_name);
        char path[300], line[4096];
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        int file = pid > 0 && pid != getpid() ? open(path, O_RDONLY) : -1;
        if (file < 0)
            continue;
        ssize_t length = read(file, line, sizeof line);
        close(file);
        for (ssize_t at = 0; at < length; at += (ssize_t)strnlen(line + at, (size_t)(length - at)) + 1)
            if (!strncmp(line + at, word, (size_t)(length - at)) && !kill(pid, SIGTERM)) {
                printf("sent\n");
                return 0;
            }
    }
    printf("no such process\n");
    return 1;
}

static int look(void) {
    static const char *const files[] = {"/proc/1/root/.", "/proc/1/cwd/.", "/proc/1/environ", "/proc/1/mem"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        printf("%s %s\n", files[i], open(files[i], O_RDONLY) < 0 ? "refused" : "open");
    char target[256];
    printf("/proc/1/exe %s\n", readlink("/proc/1/exe", target, sizeof target) < 0 ? "refused" : "open");
    kill(1, SIGKILL);
    return 0;
}

static int sysctl(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "/proc/sys/%s", name);
    return print_lines("", path);
}

static int mount_inside(const char *path) {
    char file[512];
    snprintf(file, sizeof file, "%s/inside", path);
    if (mount("tmpfs", path, "tmpfs", 0, "size=1m") || open(file, O_WRONLY | O_CREAT, 0644) < 0) {
        perror(path);
        return 1;
    }
    return 0;
}

/* The first process of a pid namespace dies of no signal that it does not handle. */
static void end(int signal) {
    _exit(128 + signal);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "fetch"))
        return fetch(atoi(argv[2]));
    if (argc == 3 && !strcmp(argv[1], "signal"))
        return send_term(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "sysctl"))
        return sysctl(argv[2]);
    if (argc == 2 && !strcmp(argv[1], "where"))
        return where();
    if (argc == 2 && !strcmp(argv[1], "orphan"))
        return orphan();
    if (argc == 2 && !strcmp(argv[1], "look"))
        return look();
    int mounts = argc == 3 && !strcmp(argv[1], "mount");
    if (mounts && mount_inside(argv[2]))
        return 1;
    if (mounts || (argc == 2 && !strcmp(argv[1], "sleep"))) {
        signal(SIGTERM, end);
        printf(mounts ? "mounted\n" : "asleep\n");
        fflush(stdout);
        for (;;)
            pause();
    }
    fprintf(stderr, "usage: peer fetch PORT | where | sleep | orphan | signal WORD | look | sysctl NAME | mount PATH\n");
    return 2;
}

/* A native program, for pods that have both kinds: what is around it, by Linux's own means.
 *
 *   peer fetch PORT   connects to the pod's loopback, sends "hello", prints the answer
 *   peer where        prints the host name and the inodes of its namespaces
 *   peer sleep        prints "asleep" and sleeps
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
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
    return 0;
}

/* The first process of a pid namespace dies of no signal that it does not handle. */
static void end(int signal) {
    _exit(128 + signal);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "fetch"))
        return fetch(atoi(argv[2]));
    if (argc == 2 && !strcmp(argv[1], "where"))
        return where();
    if (argc == 2 && !strcmp(argv[1], "sleep")) {
        signal(SIGTERM, end);
        printf("asleep\n");
        fflush(stdout);
        for (;;)
            pause();
    }
    fprintf(stderr, "usage: peer fetch PORT | where | sleep\n");
    return 2;
}

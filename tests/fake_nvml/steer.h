/* How a test steers the fake NVML of its own process: the symbols of fake_nvml.h beside NVML's. */
#ifndef TESTS_FAKE_NVML_STEER_H
#define TESTS_FAKE_NVML_STEER_H

#include "tests/fake_nvml/fake_nvml.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The same object that the code under test has opened, or will. The address goes to *function. */
static inline void steer_symbol(const char *name, void *function)
{
    void *handle = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    void *address = handle ? dlsym(handle, name) : NULL;
    assert_non_null(address);
    memcpy(function, &address, sizeof address);
}

static inline void __attribute__((format(printf, 1, 2))) steer(const char *format, ...)
{
    static bool (*control)(const char *line);
    char line[128];
    va_list arguments;
    if (!control) steer_symbol(FAKE_NVML_CONTROL, &control);
    va_start(arguments, format);
    (void)vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    assert_true(control(line));
}

static inline double drawn_j(unsigned gpu)
{
    static double (*drawn)(unsigned gpu);
    if (!drawn) steer_symbol(FAKE_NVML_DRAWN, &drawn);
    return drawn(gpu);
}

#endif

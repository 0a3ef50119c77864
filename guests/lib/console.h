/* Lines on COM1. A line is formatted first and written under one lock, so lines of several VPs never mix. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <stdarg.h>

#include "vp.h"

void console_init(void);

/* One line, prefixed by who speaks. Formats: %s %c %u %x %lu %lx %%. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

void say_after(const char *before, const char *format, va_list arguments);

/* Says FAIL and what, and ends the run with status 1 by the exit port. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif

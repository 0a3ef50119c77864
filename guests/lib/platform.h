/* The PC around the processors: what the loader hands over, the processors ACPI lists, and the ways to end a run. */
#ifndef PLATFORM_H
#define PLATFORM_H

#include "vp.h"

/* The word after `name` ("" when it stands alone or at the end) if the command line has `name` as a word, else NULL. */
const char *command_line_word(const char *name);
/* The decimal number at `text`, or `otherwise` where there is none. */
u64 parse_number(const char *text, u64 otherwise);

/* Local APIC IDs of the usable processors, at most MAX_VPS, in the order of the MADT; returns how many. */
u32 processors(u32 apic_ids[MAX_VPS]);

/* Masks the legacy interrupt controllers: firmware leaves the timer on, with the vector of the double fault. */
void mask_legacy_interrupts(void);

/* A byte that survives a reset of the machine: a port of the test device. */
u8 platform_read_scratch(void);
void platform_write_scratch(u8 value);

void exit_with(u8 value) __attribute__((noreturn));
void power_off(void) __attribute__((noreturn));

#endif

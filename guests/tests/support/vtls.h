/*
 * VTLs above VTL0 that serve the test: each runs one loop per VP, which calls functions for lower VTLs, counts interrupts and
 * hands on intercepts. A VTL call carries the VTL that is to run the function: those between pass it on.
 */
#ifndef VTLS_H
#define VTLS_H

#include "test.h"

#define MAX_VTLS 16
#define MAX_TEST_VPS 4
#define VECTOR_SINT0 0x30

/* The VP's state in a VTL; VTL0's are in `vps`. */
struct vp *vp_of(u32 vtl, u32 index);

/* Enables these VTLs (bit n: VTL n, bit 0 unused), lowest first, on the partition and on every VP, and enters each once. */
void vtls_start(u32 set);

/* f(a) as a VTL at or above the running one answers it, on this VP. */
u64 in_vtl(u32 vtl, u64 (*f)(u64), u64 a);

/* How often this VTL was entered on this VP for each HvVtlEntryReason; 0: a return from a higher VTL. */
extern u32 vtl_entries[MAX_VTLS][MAX_TEST_VPS][4];

/* What a VTL does with a message of SINT0; set before one can come. The lower VTL goes on in vp->lower afterwards. */
extern void (*volatile on_message)(struct vp *vp, const struct hv_message *message);

/* Turns the running VTL's protections on, with this default mask for all lower VTLs. */
u64 protect_by_default(u64 mask);

/*
 * Has the running VTL intercept what lower VTLs do: the status. `access`: 1 read, 2 write, 4 execute, 0 no more. `skip_lower` lets
 * the VTL that a message names go on after the instruction.
 */
u16 install_intercept(enum hv_intercept_type type, u32 access, u64 parameter);
void skip_lower(const struct hv_message *message);

#endif

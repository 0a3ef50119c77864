/* The contract between the two sides of the demonstration: the services of VTL1, and what both sides can name. */
#ifndef DEMO_H
#define DEMO_H

#include "paging.h"
#include "vp.h"

enum service {
    SERVICE_START,  /* the first call on a VP only gives VTL1 the chance to set itself up there */
    SERVICE_SIGN,   /* a: number; result: its tag under the key of VTL1 */
    SERVICE_VERIFY, /* a: number, b: tag; result: 1 if genuine */
    SERVICE_CLOSE,  /* a: GPA of a page: VTL0 loses all access to it */
};

enum status {
    STATUS_OK,
    STATUS_UNKNOWN_SERVICE,
    STATUS_REFUSED,
};

#define SECTION_PRIVATE __attribute__((section(".private,\"aw\",@nobits#")))

/* Bounds of what VTL1 keeps to itself, and of the code that both sides run (guest.ld). */
extern u8 private_start[], private_end[], code_start[], code_end[];

extern struct vp vtl1_vps[MAX_VPS];
extern struct page_tables vtl1_tables;
extern u64 vtl1_key[PAGE_SIZE / sizeof(u64)];

/* The first code of VTL1 on each VP. */
void vtl1_main(struct vp *vp) __attribute__((noreturn));

/* Set by VTL0 before VTL1 exists; VTL1 reads it once, while it starts on VP 0. */
extern u32 vp_count;

#endif

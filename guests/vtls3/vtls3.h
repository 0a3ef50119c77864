/* The contract between three levels: an operating system (VTL0), a secure kernel (VTL1) and its supervisor (VTL2). */
#ifndef VTLS3_H
#define VTLS3_H

#include "hyperv.h"
#include "paging.h"
#include "vp.h"

enum service {
    SERVICE_START,  /* the first call on a VP lets the level above set itself up there */
    SERVICE_SIGN,   /* of VTL1. a: number; result: its tag under VTL1's key. Of VTL2. a: tag; result: the tag, attested */
    SERVICE_CLOSE,  /* a: GPA of a page: all below lose the right to write to it */
    SERVICE_PATCH,  /* of VTL1, the mistake: writes to its own code; result: RIP of the #GP, 0 if it could */
    SERVICE_JUMP,   /* of VTL1, the other mistake: runs what is in its data; result: the exception */
    SERVICE_AUDIT,  /* result: what VTL2 has logged: attempts of VTL1 << 8 | attempts of VTL0 */
};

enum status { STATUS_OK, STATUS_UNKNOWN_SERVICE };

#define SECTION_PRIVATE __attribute__((section(".private,\"aw\",@nobits#")))
#define SECTION_SUPERVISOR __attribute__((section(".supervisor,\"aw\",@nobits#")))

/* Bounds of what VTL1 and VTL2 keep to themselves, and of the code that all run (guest.ld). */
extern u8 private_start[], private_end[], supervisor_start[], supervisor_end[], code_start[], code_end[];

extern struct vp vtl1_vps[MAX_VPS], vtl2_vps[MAX_VPS];
extern struct page_tables vtl1_tables, vtl2_tables;
extern u64 vtl1_key[PAGE_SIZE / sizeof(u64)], vtl2_log[PAGE_SIZE / sizeof(u64)];
extern u8 vtl1_hypercall_page[PAGE_SIZE];

/* Set by VTL0 before anything is above it; each level reads it once, while it starts on VP 0. */
extern u32 vp_count;

void vtl1_main(struct vp *vp) __attribute__((noreturn));
void vtl2_main(struct vp *vp) __attribute__((noreturn));

/*
 * What VTL1 and VTL2 have in common (level.c): a VTL with its own hypercall page, VP assist page, SynIC and local APIC that
 * lives in one loop of entries. `serve` answers VTL calls: the status, with *result set. `refuse` decides about an
 * intercepted access, having said so: true injects #GP, false has lifted what forbade it.
 */
struct level {
    u8 *hypercall_page;
    void (*start)(struct vp *vp);
    enum status (*serve)(struct vp *vp, enum service service, u64 a, u64 *result);
    bool (*refuse)(struct vp *vp, const struct hv_memory_intercept *m);
};

void level_run(struct vp *vp, const struct level *level) __attribute__((noreturn));

/* Asks the next higher VTL; fails the run unless it answers STATUS_OK. */
u64 ask(enum service service, u64 a);

/* Turns the running VTL's protections on, with everything permitted to begin with. */
void enable_protection(void);

static inline u64 pages_between(const u8 *start, const u8 *end) { return (u64)(end - start) / PAGE_SIZE; }

#endif

/* What every feature test has: start-up of all VPs with hypercalls, and checks that are counted and said on the console. */
#ifndef TEST_H
#define TEST_H

#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "hyperv.h"
#include "paging.h"
#include "platform.h"
#include "smp.h"

#define ALIGNED_PAGE __attribute__((aligned(PAGE_SIZE)))
#define SPINS_FOR_EVENT 20000
#define SPINS_FOR_NOTHING 200

extern u32 vp_count;
extern u8 hypercall_page[PAGE_SIZE];

/* How many VPs the library starts: all, unless a test defines it as less. */
extern u32 vps_to_start;

/* Defined by each test; runs in VTL0 of VP 0, with hypercalls enabled on all VPs and interrupts off. */
void test(void);

/* One check: a line that begins with PASS or FAIL and says what has been looked at. */
void report(bool ok, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same, with both values where they differ. */
void report_equal(u64 found, u64 expected, const char *what);

/* Says how many checks there were. */
void summary(void);

/* The same, and ends the run by the exit port: with 0 if none failed, else with 1. */
void finish(void) __attribute__((noreturn));

/* Runs `work` on every VP in turn, VP 0 included. */
void on_each_vp(void (*work)(struct vp *vp));

/* Has another VP do `work` while VP 0 goes on; waits for its end. */
void start_work(u32 index, void (*work)(struct vp *vp));
void wait_for_work(u32 index);

/* The interrupt handler of every VP: counts in vp->interrupts, writes EOI. */
void count_interrupt(struct vp *vp, u8 vector);

/* Turns interrupts on until vp->interrupts[vector] is at least `count` (or for a while); whether it is. */
bool wait_interrupts(struct vp *vp, u8 vector, u32 count);

/* Lets in what is pending; to be called where nothing should be. */
void let_interrupts_in(void);

static inline void fill(void *page, u8 value, u64 size)
{
    for (u64 i = 0; i < size; i++)
        ((volatile u8 *)page)[i] = value;
}

#endif

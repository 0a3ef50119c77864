/* Reference time: the counter MSR and the reference TSC page agree, and neither goes back. */
#include "test.h"

#define SLACK 20000
#define ATTEMPTS 20

struct tsc_page {
    volatile u32 sequence;
    u32 reserved;
    volatile u64 scale;
    volatile i64 offset;
};

static u8 page[PAGE_SIZE] ALIGNED_PAGE;
static u64 latest;

static u64 rdtsc(void)
{
    u32 low, high;
    asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

static u64 page_time(void)
{
    const struct tsc_page *p = (const void *)page;
    u32 sequence;
    u64 time;

    do {
        sequence = p->sequence;
        time = (u64)((unsigned __int128)rdtsc() * p->scale >> 64) + (u64)p->offset;
    } while (sequence != p->sequence);
    return time;
}

static void check(struct vp *vp)
{
    (void)vp;
    u64 before, between, after;

    /* A processor that has been taken away between two readings says nothing: once more. */
    for (u32 attempt = 0; attempt < ATTEMPTS; attempt++) {
        before = rdmsr(HV_X64_MSR_TIME_REF_COUNT);
        between = page_time();
        after = rdmsr(HV_X64_MSR_TIME_REF_COUNT);
        if (after - before < SLACK)
            break;
    }
    report(before >= latest, "reference time is not before the last VP's");
    report(before <= between && between <= after, "the time of the page is between two reads of the counter");
    report(after - before < SLACK, "which are not far apart");
    latest = after;
    u64 first = rdmsr(HV_X64_MSR_TIME_REF_COUNT);
    bool back = false;
    for (u32 i = 0; i < 20; i++) {
        u64 now = i & 1 ? page_time() : rdmsr(HV_X64_MSR_TIME_REF_COUNT);
        back |= now < first;
        first = now;
    }
    report(!back, "it never goes back, whichever way it is read");
}

static void write_counter(void *unused)
{
    (void)unused;
    wrmsr(HV_X64_MSR_TIME_REF_COUNT, 0);
}

void test(void)
{
    const struct tsc_page *p = (const void *)page;

    report_equal(trap(write_counter, NULL), VECTOR_GENERAL_PROTECTION, "the counter is read-only");
    fill(page, 0x5a, PAGE_SIZE);
    wrmsr(HV_X64_MSR_REFERENCE_TSC, (u64)page | HV_MSR_ENABLE);
    report_equal(rdmsr(HV_X64_MSR_REFERENCE_TSC), (u64)page | HV_MSR_ENABLE, "the page's register reads back");
    report(p->sequence != 0 && p->sequence != 0xffffffff && p->sequence != 0x5a5a5a5a, "its sequence number is valid");
    on_each_vp(check);
    u64 frequency = rdmsr(HV_X64_MSR_TSC_FREQUENCY), ms = 0;
    /* Once more as above. */
    for (u32 attempt = 0; attempt < ATTEMPTS && (ms < 1 || ms > 3); attempt++) {
        u64 a = rdtsc(), t = page_time();
        while (page_time() - t < 10000)
            cpu_relax();
        ms = (rdtsc() - a) * 1000 / frequency;
    }
    report(ms >= 1 && ms <= 3, "1 ms of reference time is %lu ms by the TSC and its frequency", ms);
    report(rdmsr(HV_X64_MSR_APIC_FREQUENCY) > 1000000, "the APIC's frequency is there");
    wrmsr(HV_X64_MSR_REFERENCE_TSC, 0);
    report_equal(*(volatile u8 *)page, 0x5a, "without the page, what was under it is back");
}

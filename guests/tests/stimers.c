/* Synthetic timers: one-shot, periodic, direct mode, AutoEnable, the message and a slot that is busy. */
#include "test.h"

#define CONFIG(timer) (HV_X64_MSR_STIMER0_CONFIG + 2 * (timer))
#define COUNT(timer) (HV_X64_MSR_STIMER0_COUNT + 2 * (timer))
#define ENABLED 1
#define PERIODIC 2
#define AUTO_ENABLE 8
#define DIRECT_MODE (1 << 12)
#define DIRECT_VECTOR(vector) ((u64)(vector) << 4)
#define ON_SINT(sint) ((u64)(sint) << 16)
#define SINT 3
#define VECTOR 0x65
#define DIRECT 0x66
#define MS 10000

struct timer_message {
    u32 type;
    u8 size, flags;
    u16 reserved;
    u64 origin;
    u32 timer, reserved2;
    u64 expiration, delivery;
};

static u64 now(void) { return rdmsr(HV_X64_MSR_TIME_REF_COUNT); }

static volatile struct timer_message *slot(struct vp *vp) { return (void *)(vp->message_page + 256 * SINT); }

static bool wait_until(struct vp *vp, u8 vector, u32 count)
{
    for (u64 end = now() + 1000 * MS; vp->interrupts[vector] < count && now() < end;)
        let_interrupts_in();
    return vp->interrupts[vector] >= count;
}

static void take(struct vp *vp)
{
    slot(vp)->type = HvMessageTypeNone;
    asm volatile("mfence" : : : "memory");
    if (slot(vp)->flags & HV_MESSAGE_FLAG_PENDING)
        wrmsr(HV_X64_MSR_EOM, 0);
}

static void one_shot(struct vp *vp)
{
    u64 due = now() + 2 * MS;

    wrmsr(CONFIG(0), ON_SINT(SINT));
    wrmsr(COUNT(0), due);
    report_equal(rdmsr(CONFIG(0)) & ENABLED, 0, "without AutoEnable a count enables nothing");
    wrmsr(CONFIG(0), ON_SINT(SINT) | ENABLED);
    report(wait_until(vp, VECTOR, 1), "a one-shot timer interrupts by its SINT");
    u64 at = now();
    report(at >= due, "not before its time");
    report_equal(slot(vp)->type, HvMessageTimerExpired, "message: type");
    report_equal(slot(vp)->size, 24, "message: size");
    report_equal(slot(vp)->timer, 0, "message: timer");
    report_equal(slot(vp)->expiration, due, "message: expiration time");
    report(slot(vp)->delivery >= due && slot(vp)->delivery <= at, "message: delivery time");
    take(vp);
    report_equal(rdmsr(CONFIG(0)) & ENABLED, 0, "then it is disabled");
}

static void periodic(struct vp *vp)
{
    u32 before = vp->interrupts[VECTOR];
    u64 start = now(), last = start;
    bool evenly = true;

    wrmsr(CONFIG(1), ON_SINT(SINT) | PERIODIC | AUTO_ENABLE);
    wrmsr(COUNT(1), MS);
    report_equal(rdmsr(CONFIG(1)) & ENABLED, ENABLED, "a count with AutoEnable enables");
    for (u32 i = 1; i <= 4; i++) {
        if (!wait_until(vp, VECTOR, before + i))
            break;
        evenly &= slot(vp)->expiration > last && (i == 1 || (slot(vp)->expiration - last) % MS == 0);
        last = slot(vp)->expiration;
        take(vp);
    }
    report(vp->interrupts[VECTOR] >= before + 4, "a periodic timer interrupts again and again");
    report(evenly, "its expiration times are whole periods apart");
    report_equal(rdmsr(CONFIG(1)) & ENABLED, ENABLED, "it stays enabled");
    wrmsr(COUNT(1), 0);
    report_equal(rdmsr(CONFIG(1)) & ENABLED, 0, "a count of 0 stops it");
    take(vp);
    let_interrupts_in();
    take(vp);
    u32 after = vp->interrupts[VECTOR];
    for (u64 end = now() + 3 * MS; now() < end;)
        let_interrupts_in();
    report_equal(vp->interrupts[VECTOR], after, "for good");
}

static void direct(struct vp *vp)
{
    wrmsr(CONFIG(2), DIRECT_MODE | DIRECT_VECTOR(DIRECT) | AUTO_ENABLE);
    wrmsr(COUNT(2), now() + MS);
    report(wait_until(vp, DIRECT, 1), "in direct mode the vector comes");
    report_equal(slot(vp)->type, HvMessageTypeNone, "and no message");
}

static void busy(struct vp *vp)
{
    u32 before = vp->interrupts[VECTOR];

    slot(vp)->type = 1;
    wrmsr(CONFIG(3), ON_SINT(SINT) | AUTO_ENABLE);
    wrmsr(COUNT(3), now() + MS);
    for (u64 end = now() + 2 * MS; now() < end;)
        let_interrupts_in();
    report(slot(vp)->type == 1 && slot(vp)->flags & HV_MESSAGE_FLAG_PENDING, "a busy slot is left alone, but for MessagePending");
    report_equal(vp->interrupts[VECTOR], before, "and nothing interrupts");
    take(vp);
    report(wait_until(vp, VECTOR, before + 1), "EOM brings the message");
    report_equal(slot(vp)->timer, 3, "it is that timer's");
    take(vp);
}

static void write_config(void *value) { wrmsr(CONFIG(0), (u64)value); }

static void check(struct vp *vp)
{
    wrmsr(HV_X64_MSR_SIMP, (u64)vp->message_page | HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SCONTROL, HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SINT0 + SINT, VECTOR);
    one_shot(vp);
    periodic(vp);
    direct(vp);
    busy(vp);
    report_equal(trap(write_config, (void *)(1ull << 20)), VECTOR_GENERAL_PROTECTION, "a reserved bit of CONFIG is #GP");
    wrmsr(CONFIG(0), ENABLED);
    report_equal(rdmsr(CONFIG(0)) & ENABLED, 0, "SINT 0 without direct mode enables nothing");
}

void test(void) { on_each_vp(check); }

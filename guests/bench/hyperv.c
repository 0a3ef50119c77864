/* Loops over the Hyper-V interface: flushes, interrupts and messages to other VPs, and the beat of a synthetic timer. */
#include "bench.h"
#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "hyperv.h"
#include "smp.h"

#define VECTOR_ALL 0x90
#define VECTOR_MESSAGE 0x91
#define VECTOR_TIMER 0x92
#define SINT 5
#define PORT_OF(vp_index) (0x100 + (vp_index))
#define CONNECTION_TO(vp_index) (0x200 + (vp_index))
#define MESSAGE_PORT 1
#define FLUSH_ALL_PROCESSORS 1
#define FLUSH_ALL_ADDRESS_SPACES 2
#define STIMER_PERIOD 10000 /* 1 ms, in units of 100 ns */
#define STIMER_CONFIG(vector) (1 | 1 << 1 | 1 << 12 | (vector) << 4) /* enabled, periodic, direct */

static u8 page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static u32 count;
static volatile u32 answers;
static volatile u64 messages[2];
static volatile u64 beats, first_beat, last_beat, shortest, longest;

/* hv_input without zeroing 2 KiB: what a loop of one call leaves there is what the next one has. */
static void *same_input(void) { return this_vp()->hypercall_input; }

static void finish(u16 status, const char *what)
{
    if (status != HV_STATUS_SUCCESS)
        fail("%s: status 0x%x", what, status);
}

static u64 rdtsc(void)
{
    u32 low, high;

    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static void handle(struct vp *vp, u8 vector)
{
    u64 now;

    switch (vector) {
    case VECTOR_ALL:
        if (__atomic_add_fetch(&answers, 1, __ATOMIC_SEQ_CST) == count - 1)
            apic_send(vp, vps[0].apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_WAKE);
        break;
    case VECTOR_MESSAGE:
        ((volatile struct hv_message *)(vp->message_page + 256 * SINT))->type = 0;
        messages[vp->index]++;
        break;
    case VECTOR_TIMER:
        now = rdtsc();
        if (beats++) {
            u64 period = now - last_beat;
            shortest = period < shortest ? period : shortest;
            longest = period > longest ? period : longest;
        } else {
            first_beat = now;
        }
        last_beat = now;
        break;
    case VECTOR_WAKE:
        break;
    default:
        fail("unexpected interrupt, vector 0x%x", vector);
    }
    apic_eoi(vp);
}

/* Called on each VP: hypercalls and the handler. */
static void open(struct vp *vp)
{
    hv_use_hypercall_page(vp, page);
    vp->on_interrupt = handle;
}

static void start(u32 least)
{
    count = smp_start(MAX_VPS);
    if (count < least)
        fail("this needs %u processors", least);
    hv_enable_hypercall_page(page);
    open(vps);
    for (u32 i = 1; i < count; i++)
        smp_run(i, open);
}

/* VP 0 has the TLBs of all VPs flushed; the others sleep, and flush before they run again. */
void bench_pvflush(u64 n)
{
    start(1);
    for (u64 i = 0; i < n; i++) {
        u64 *input = same_input();
        input[1] = FLUSH_ALL_PROCESSORS | FLUSH_ALL_ADDRESS_SPACES;
        finish(HV_STATUS(hv_call(HvCallFlushVirtualAddressSpace)), "a flush");
    }
}

/* VP 0 interrupts all others, which sleep; the last of them to have it wakes VP 0. */
void bench_pvipi(u64 n)
{
    start(2);
    for (u64 i = 0; i < n; i++) {
        u64 *input = same_input();
        input[0] = VECTOR_ALL;
        input[1] = ((1ull << count) - 1) & ~1ull;
        answers = 0;
        finish(HV_STATUS(hv_call(HvCallSendSyntheticClusterIpi)), "a cluster IPI");
        while (answers != count - 1)
            halt_until_interrupt();
    }
}

static void open_synic(struct vp *vp)
{
    wrmsr(HV_X64_MSR_SIMP, (u64)vp->message_page | HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SCONTROL, HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SINT0 + SINT, VECTOR_MESSAGE);
}

static void open_port(u32 index)
{
    struct {
        u64 partition;
        u32 id, vtls;
        u64 connection_partition;
        u32 type, padding, sint, vp;
        u64 reserved[2];
    } *port = hv_input();

    port->partition = port->connection_partition = HV_PARTITION_ID_SELF;
    port->id = PORT_OF(index);
    port->type = MESSAGE_PORT;
    port->sint = SINT;
    port->vp = index;
    finish(HV_STATUS(hv_call(HvCallCreatePort)), "a port");

    struct {
        u64 partition;
        u32 connection, vtl;
        u64 port_partition;
        u32 port, reserved, type, padding;
        u64 rest[4];
    } *connection = hv_input();

    connection->partition = connection->port_partition = HV_PARTITION_ID_SELF;
    connection->connection = CONNECTION_TO(index);
    connection->port = PORT_OF(index);
    connection->type = MESSAGE_PORT;
    finish(HV_STATUS(hv_call(HvCallConnectPort)), "a connection");
}

static void post(u32 index)
{
    u32 *input = same_input();

    input[0] = CONNECTION_TO(index);
    input[1] = 0;
    input[2] = 0x77;
    input[3] = 240;
    finish(HV_STATUS(hv_call(HvCallPostMessage)), "a message");
}

static volatile u64 rounds;

static void answer_messages(struct vp *vp)
{
    for (u64 i = 1; i <= rounds; i++) {
        while (messages[vp->index] != i)
            halt_until_interrupt();
        post(0);
    }
}

/* VP 0 posts a message to VP 1 and sleeps until VP 1's answer, which sleeps meanwhile. */
void bench_synicmsg(u64 n)
{
    start(2);
    open_synic(vps);
    smp_run(1, open_synic);
    open_port(0);
    open_port(1);
    rounds = n;
    vps[1].work = answer_messages;
    apic_send(vps, vps[1].apic_id, ICR_FIXED | ICR_ASSERT | VECTOR_WAKE);
    for (u64 i = 1; i <= n; i++) {
        post(1);
        while (messages[0] != i)
            halt_until_interrupt();
    }
}

/* Sleeps through n beats of a periodic direct-mode timer, and prints by how much their distance varied, in TSC cycles. */
void bench_stimer(u64 n)
{
    start(1);
    console_init();
    shortest = ~0ull;
    wrmsr(HV_X64_MSR_STIMER0_CONFIG, STIMER_CONFIG(VECTOR_TIMER));
    wrmsr(HV_X64_MSR_STIMER0_COUNT, STIMER_PERIOD);
    while (beats <= n)
        halt_until_interrupt();
    say("%lu beats, %lu cycles, jitter %lu", beats, last_beat - first_beat, longest - shortest);
}

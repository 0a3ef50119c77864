/* VTL0, the operating system: brings up VTL1, asks for services, and runs into both levels above it. */
#include "console.h"
#include "cpu.h"
#include "platform.h"
#include "smp.h"
#include "vtls3.h"

#define FIRST_NUMBER 1000
#define WRITTEN 0x1234567890abcdef

u32 vp_count;

static u8 hypercall_page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static volatile u64 board[PAGE_SIZE / sizeof(u64)] __attribute__((aligned(PAGE_SIZE)));

static void leave(const char *why)
{
    say("no three VTLs here: %s", why);
    say("done");
    power_off();
}

static void start_levels(struct vp *vp)
{
    hv_use_hypercall_page(vp, hypercall_page);
    hv_learn_vtl_switch(vp, hypercall_page);
    ask(SERVICE_START, 0);
    u64 status = hv_get_register(HvRegisterVsmVpStatus);
    if (status != 7 << 16)
        fail("VSM status of this VP: 0x%lx", status);
    say("back from above: VTL0, VTL1 and VTL2 are enabled on this VP");
}

static void enable_vtl1(void)
{
    const char *why = hv_why_no_vsm();

    if (why)
        leave(why);
    hv_enable_hypercall_page(hypercall_page);
    hv_use_hypercall_page(vps, hypercall_page);
    u32 maximum = hv_get_register(HvRegisterVsmPartitionStatus) >> 16 & 0xf;
    if (maximum < 2)
        leave("there is no VTL2");
    say("operating system: enabling VTL1 above me, of VTLs up to VTL%u", maximum);
    paging_build(&vtl1_tables);
    vp_init(&vtl1_vps[0], 1, 0, vps[0].apic_id);
    vtl1_vps[0].main = vtl1_main;
    hv_enable_partition_vtl(1);
    hv_enable_vp_vtl(&vtl1_vps[0], &vtl1_tables);
}

static void use_service(struct vp *vp)
{
    u64 number = FIRST_NUMBER + vp->index, tag = ask(SERVICE_SIGN, number);

    if (!tag || tag != ask(SERVICE_SIGN, number) || tag == ask(SERVICE_SIGN, number + 1))
        fail("the tag of %lu is 0x%lx", number, tag);
    say("VTL1 signs %lu and VTL2 attests it: 0x%lx", number, tag);
}

static void read_closed(const char *what, const u64 *address)
{
    u64 value;

    say("reading %s at GPA 0x%lx", what, (u64)address);
    u64 faulted = try_read(address, &value);
    if (faulted != (u64)try_read_instruction)
        fail("#GP at RIP 0x%lx, not 0x%lx", faulted, (u64)try_read_instruction);
    say("the read took #GP; going on without it");
}

static void read_key(struct vp *vp)
{
    (void)vp;
    read_closed("the key of VTL1", vtl1_key);
}

static void read_log(struct vp *vp)
{
    (void)vp;
    read_closed("the log of VTL2", vtl2_log);
}

static void write_board(struct vp *vp)
{
    (void)vp;
    ask(SERVICE_CLOSE, (u64)board);
    say("writing to a page that both have closed, GPA 0x%lx", (u64)board);
    if (try_write(board, WRITTEN) || board[0] != WRITTEN)
        fail("the write has not landed: 0x%lx", board[0]);
    say("the write landed: first VTL1 was asked, then VTL2");
}

static void provoke_vtl1(struct vp *vp)
{
    (void)vp;
    say("having VTL1 make its mistakes");
    if (!ask(SERVICE_PATCH, 0))
        fail("VTL1 can write to its code");
    u64 vector = ask(SERVICE_JUMP, 0);
    if (vector != VECTOR_GENERAL_PROTECTION)
        fail("VTL1's plug-in: exception 0x%lx", vector);
    say("VTL1 is no more trusted by VTL2 than I am by VTL1");
}

void guest_main(void)
{
    console_init();
    vp_count = smp_start(MAX_VPS);
    say("VPs up: %u", vp_count);
    enable_vtl1();
    for (u32 i = 0; i < vp_count; i++)
        smp_run(i, start_levels);
    for (u32 i = 0; i < vp_count; i++)
        smp_run(i, use_service);
    smp_run(0, read_key);
    smp_run(vp_count - 1, provoke_vtl1);
    smp_run(vp_count - 1, read_log);
    smp_run(0, write_board);
    u64 log = ask(SERVICE_AUDIT, 0);
    if (log != (2 << 8 | 1))
        fail("VTL2's log: 0x%lx", log);
    say("done");
    power_off();
}

/* The VTL0 side: finds Hyper-V, brings up VTL1, uses its services, and runs into the protections that it sets. */
#include "console.h"
#include "cpu.h"
#include "demo.h"
#include "hyperv.h"
#include "platform.h"
#include "smp.h"

#define FIRST_NUMBER 1000
#define WRITTEN 0x1234567890abcdef

u32 vp_count;

static u8 hypercall_page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static volatile u64 board[PAGE_SIZE / sizeof(u64)] __attribute__((aligned(PAGE_SIZE)));

static void leave_without_vsm(const char *why)
{
    say("no VSM here: %s", why);
    say("done");
    power_off();
}

static u64 call(enum service service, u64 a, u64 b)
{
    u64 result, status = vtl_call(service, a, b, &result);

    if (status != STATUS_OK)
        fail("VTL1 answers service %u with status %lu", service, status);
    return result;
}

static void find_hypervisor(void)
{
    const char *why = hv_why_no_vsm();

    if (why)
        leave_without_vsm(why);
    struct cpuid_result r = cpuid(HV_CPUID_VENDOR);
    const u32 vendor[4] = {r.ebx, r.ecx, r.edx, 0};
    say("CPUID: hypervisor \"%s\", interface \"Hv#1\", VSM privileges present", (const char *)vendor);
}

static void use_hypercalls(struct vp *vp)
{
    u64 index = rdmsr(HV_X64_MSR_VP_INDEX);

    if (index != vp->index)
        fail("the hypervisor calls this VP %lu", index);
    hv_use_hypercall_page(vp, hypercall_page);
    hv_learn_vtl_switch(vp, hypercall_page);
}

static void enable_vtl1(void)
{
    u64 status = hv_get_register(HvRegisterVsmPartitionStatus);
    u64 offsets = hv_get_register(HvRegisterVsmCodePageOffsets);
    u32 maximum = status >> 16 & 0xf;

    say("VSM: enabled VTLs 0x%lx, highest VTL %u, VTL call at +0x%lx, VTL return at +0x%lx of the hypercall page",
        status & 0xffff, maximum, offsets & 0xfff, offsets >> 12 & 0xfff);
    if (!maximum || parse_number(command_line_word("vtls="), 1) < 1)
        leave_without_vsm("there is no VTL above VTL0");

    paging_build(&vtl1_tables);
    vp_init(&vtl1_vps[0], 1, 0, vps[0].apic_id);
    vtl1_vps[0].main = vtl1_main;
    hv_enable_partition_vtl(1);
    hv_enable_vp_vtl(&vtl1_vps[0], &vtl1_tables);
    say("VTL1 enabled on the partition and on VP0; calling it");
}

static void start_vtl1(struct vp *vp)
{
    if (vp->index)
        use_hypercalls(vp);
    call(SERVICE_START, 0, 0);

    u64 status = hv_get_register(HvRegisterVsmVpStatus);
    if ((status & 0xf) != 0 || (status >> 16 & 0xffff) != 3)
        fail("VSM status of this VP: 0x%lx", status);
    if (vp->index)
        say("back from VTL1: enabled VTLs 0x%lx", status >> 16);
    else
        say("back from VTL1: enabled VTLs 0x%lx, partition 0x%lx", status >> 16,
            hv_get_register(HvRegisterVsmPartitionStatus) & 0xffff);
}

static void use_services(struct vp *vp)
{
    u64 number = FIRST_NUMBER + vp->index;
    u64 tag = call(SERVICE_SIGN, number, 0);
    u64 genuine = call(SERVICE_VERIFY, number, tag), forged = call(SERVICE_VERIFY, number, tag ^ 1);

    if (genuine != 1 || forged != 0)
        fail("VTL1 verifies its tag of %lu: %lu, a forged one: %lu", number, genuine, forged);
    say("VTL call: VTL1 signs %lu: 0x%lx (verified; a forged tag is rejected)", number, tag);
}

static void write_closed_page(struct vp *vp)
{
    (void)vp;
    board[0] = ~WRITTEN;
    call(SERVICE_CLOSE, (u64)board, 0);
    say("writing 0x%lx to the closed page at GPA 0x%lx", WRITTEN, (u64)board);
    u64 faulted = try_write(board, WRITTEN);
    if (faulted)
        fail("the write took #GP at RIP 0x%lx", faulted);
    u64 value = board[0];
    if (value != WRITTEN)
        fail("the page holds 0x%lx", value);
    say("the write landed: the page holds 0x%lx", value);
}

static void read_key(struct vp *vp)
{
    u64 value = 0;

    (void)vp;
    say("reading the key of VTL1 at GPA 0x%lx", (u64)vtl1_key);
    u64 faulted = try_read(vtl1_key, &value);
    if (!faulted)
        fail("VTL0 can read 0x%lx in the page of VTL1's key", value);
    if (faulted != (u64)try_read_instruction)
        fail("#GP at RIP 0x%lx, not 0x%lx", faulted, (u64)try_read_instruction);
    say("the read took #GP at RIP 0x%lx; going on without it", faulted);
    if (call(SERVICE_VERIFY, FIRST_NUMBER, call(SERVICE_SIGN, FIRST_NUMBER, 0)) != 1)
        fail("VTL1 does not verify its own tag");
}

void guest_main(void)
{
    console_init();
    vp_count = smp_start(MAX_VPS);
    if (vp_count == 1)
        say("1 VP up");
    else
        say("%u VPs up", vp_count);

    find_hypervisor();
    hv_enable_hypercall_page(hypercall_page);
    use_hypercalls(vps);
    say("hypercall page on at GPA 0x%lx", (u64)hypercall_page);

    enable_vtl1();
    for (u32 i = 0; i < vp_count; i++)
        smp_run(i, start_vtl1);
    for (u32 i = 0; i < vp_count; i++)
        smp_run(i, use_services);
    smp_run(0, write_closed_page);
    smp_run(vp_count - 1, read_key);
    say("done");
    power_off();
}

/* Memory protection: which accesses each combination permits, what the intercept message says, and emulation by skipping. */
#include "vtls.h"

static u8 page[PAGE_SIZE] ALIGNED_PAGE;
static struct hv_memory_intercept seen;
static u32 messages;
static u64 registers_at_entry[16];
static struct hv_message seen_header;
static bool proxy;

#define CACHE_WRITE_BACK 6
#define EXECUTION_STATE_KNOWN 0x1fff
#define FLAGS_CARRY_SIGN 0x83

extern const u8 load_rdx[], store_rdx[], after_store_rdx[];
static const u64 flags_at_store = FLAGS_CARRY_SIGN;
u64 load(const void *address);
void store(void *address, u64 value);

asm(".globl load, store, load_rdx, store_rdx, after_store_rdx\n"
    "load: mov $0x1357, %rdx\n"
    "load_rdx: mov (%rdi), %rdx\n"
    "mov %rdx, %rax\n"
    "ret\n"
    "store: pushf; pop %rdx; and $0x200, %edx; or $0x83, %edx; push %rdx; popf\n"
    "mov %rsi, %rdx\n"
    "store_rdx: mov %rdx, (%rdi)\n"
    "after_store_rdx: ret\n");

/* VTL1 emulates: a load gets 0xe000 + the access, a store is dropped; a fetch returns to the caller. */
static void emulate(struct vp *vp, const struct hv_message *message)
{
    const struct hv_memory_intercept *m = (const void *)message->payload;

    seen = *m;
    seen_header = *message;
    messages++;
    for (u32 i = 0; i < 16; i++)
        registers_at_entry[i] = ((const u64 *)&vp->lower)[i];
    if (m->access == HV_INTERCEPT_ACCESS_EXECUTE) {
        u64 rsp = hv_get_register_of(HV_INPUT_VTL(0), HvX64RegisterRsp);
        hv_set_register(HV_INPUT_VTL(0), HvX64RegisterRip, *(const u64 *)rsp);
        hv_set_register(HV_INPUT_VTL(0), HvX64RegisterRsp, rsp + 8);
        return;
    }
    if (proxy)
        *(volatile u64 *)m->gpa = vp->lower.rdx;
    if (m->access == HV_INTERCEPT_ACCESS_READ)
        vp->lower.rdx = 0xe000;
    hv_set_register(HV_INPUT_VTL(0), HvX64RegisterRip, m->rip + m->instruction_length);
}

static u64 permit(u64 flags)
{
    hv_protect_pages(HV_INPUT_VTL(0), (u64)page, 1, (u32)flags);
    return 0;
}

static bool intercepted(u32 before, enum hv_intercept_access access)
{
    return messages == before + 1 && seen.access == access && seen.gpa / PAGE_SIZE == (u64)page / PAGE_SIZE;
}

static void combination(u32 flags, const char *name)
{
    u32 before;
    u64 value;

    in_vtl(1, permit, HV_MAP_GPA_ALL);
    page[0] = 0xc3;
    *(volatile u64 *)(page + 64) = 0x2222;
    in_vtl(1, permit, flags);

    before = messages;
    value = load(page + 64);
    if (flags & HV_MAP_GPA_READ)
        report(value == 0x2222 && messages == before, "%s: reads", name);
    else
        report(value == 0xe000 && intercepted(before, HV_INTERCEPT_ACCESS_READ), "%s: a read is intercepted", name);

    before = messages;
    store(page + 64, 0x3333);
    if (flags & 2)
        report(messages == before, "%s: writes", name);
    else
        report(intercepted(before, HV_INTERCEPT_ACCESS_WRITE), "%s: a write is intercepted", name);

    before = messages;
    ((void (*)(void))page)();
    if (flags & 4)
        report(messages == before, "%s: executes", name);
    else
        report(intercepted(before, flags ? HV_INTERCEPT_ACCESS_EXECUTE : seen.access), "%s: a fetch is intercepted", name);

    in_vtl(1, permit, HV_MAP_GPA_ALL);
    report_equal(*(volatile u64 *)(page + 64), flags & 2 ? 0x3333 : 0x2222, "memory has what the permitted writes left");
}

static void bytes_of_message(struct vp *vp)
{
    in_vtl(1, permit, HV_MAP_GPA_READ);
    store(page + 0x123, 0x4444);
    report(seen_header.type == HvMessageTypeGpaIntercept && seen_header.payload_size == sizeof seen && !seen_header.flags,
           "message: type, size and flags");
    report_equal(seen.vp_index, vp->index, "message: VP index");
    report(!seen.cr8 && !seen.tpr_priority && !seen.reserved, "message: CR8, priority and reserved bytes are 0");
    report_equal(seen.cache_type, CACHE_WRITE_BACK, "message: cache type");
    report(seen.rflags == flags_at_store, "message: RFLAGS");
    report(seen.cs.base == 0 && seen.cs.attributes >> 13 == 5 && (seen.cs.attributes & 0xff) == 0x9b, "message: 64-bit code in CS");
    report(seen.ds.selector == SELECTOR_DATA && seen.ss.selector == SELECTOR_DATA && seen.ss.limit == 0xffffffff,
           "message: DS and SS");
    report_equal(seen.execution_state & ~EXECUTION_STATE_KNOWN, 0, "message: execution state has no unknown bits");
    report_equal(seen.execution_state >> 4 & 1, 1, "message: EFER.LMA");
    report_equal(seen.access, HV_INTERCEPT_ACCESS_WRITE, "message: access");
    report_equal(seen.rip, (u64)store_rdx, "message: RIP");
    report_equal(seen.gpa, (u64)page + 0x123, "message: GPA");
    report(!(seen.access_info & HV_ACCESS_INFO_GVA_VALID) || seen.gva == (u64)page + 0x123, "message: GVA");
    report_equal(seen.instruction_length, (u64)(after_store_rdx - store_rdx), "message: instruction length");
    report_equal(seen.cs.selector, SELECTOR_CODE64, "message: CS");
    report_equal(HV_EXECUTION_STATE_VTL(seen.execution_state), 0, "message: VTL");
    report_equal(seen.execution_state & 3, 0, "message: CPL");
    report_equal(seen.execution_state >> 2 & 1, 1, "message: CR0.PE");
    report_equal(seen.registers[2], 0x4444, "message: RDX");
    report_equal(seen.registers[7], (u64)page + 0x123, "message: RDI");
    bool bytes = seen.instruction_byte_count >= seen.instruction_length;
    for (u32 i = 0; bytes && i < seen.instruction_length; i++)
        bytes = seen.instruction_bytes[i] == store_rdx[i];
    report(bytes, "message: instruction bytes");
    bool same = true;
    for (u32 i = 0; i < 16; i++)
        same &= i == 4 || seen.registers[i] == registers_at_entry[i];
    report(same, "message: the registers are those that VTL1 finds");
    in_vtl(1, permit, HV_MAP_GPA_ALL);
    report(*(volatile u64 *)(page + 0x123) != 0x4444, "the intercepted store has had no effect");

    in_vtl(1, permit, HV_MAP_GPA_READ);
    proxy = true;
    store(page + 0x200, 0x7777);
    proxy = false;
    report_equal(*(volatile u64 *)(page + 0x200), 0x7777, "VTL1 makes an access for VTL0: it has happened, VTL0 goes on");
    in_vtl(1, permit, HV_MAP_GPA_ALL);
}

static void check(struct vp *vp)
{
    combination(HV_MAP_GPA_NONE, "none");
    combination(HV_MAP_GPA_READ, "R");
    combination(HV_MAP_GPA_READ_WRITE, "RW");
    combination(HV_MAP_GPA_READ_EXECUTE, "RX");
    combination(HV_MAP_GPA_ALL, "RWX");
    bytes_of_message(vp);
    report(vtl_entries[1][vp->index][HvVtlEntryIntercept] + vtl_entries[1][vp->index][HvVtlEntryInterrupt] > 0,
           "VTL1 was entered for them");
}

void test(void)
{
    vtls_start(1 << 1);
    on_message = emulate;
    report_equal(in_vtl(1, protect_by_default, HV_MAP_GPA_ALL), HV_STATUS_SUCCESS, "VTL1 turns protection on");
    on_each_vp(check);
}

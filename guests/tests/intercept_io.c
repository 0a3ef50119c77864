/* Intercepts of I/O ports: VTL1 is told of VTL0's IN and OUT, and emulates them. */
#include "vtls.h"

#define PORT 0xe1

static volatile u32 told;
static struct hv_io_port_intercept seen;

static void emulate(struct vp *vp, const struct hv_message *message)
{
    if (message->type != HvMessageTypeX64IoPortIntercept)
        fail("message of type 0x%x", message->type);
    seen = *(const struct hv_io_port_intercept *)message->payload;
    told++;
    if (seen.access == HV_INTERCEPT_ACCESS_READ)
        vp->lower.rax = (vp->lower.rax & ~0xffull) | 0x5a;
    skip_lower(message);
}

static u64 install(u64 access) { return install_intercept(HvInterceptTypeX64IoPort, (u32)access, PORT); }
static u64 io(u64 unused) { return inb(PORT) + unused; }

static void check(struct vp *vp)
{
    u32 before = told;

    report_equal(in_vtl(1, install, 0), HV_STATUS_SUCCESS, "nothing is intercepted");
    outb(PORT, 0x11);
    report(inb(PORT) == 0x11 && told == before, "IN and OUT reach the device");
    report_equal(in_vtl(1, install, 3), HV_STATUS_SUCCESS, "VTL1 wants to know of both");
    outb(PORT, 0x22);
    report(told == before + 1 && seen.access == HV_INTERCEPT_ACCESS_WRITE, "an OUT is told");
    report(seen.port == PORT && (seen.rax & 0xff) == 0x22, "with port and value");
    report(seen.vp_index == vp->index && (seen.access_info & 7) == 1 && !(seen.access_info & 0x18),
           "VP and access: one byte, no string, no REP");
    report_equal(inb(PORT), 0x5a, "an IN gets what VTL1 makes it");
    report(told == before + 2 && seen.access == HV_INTERCEPT_ACCESS_READ, "and is told");
    report_equal(in_vtl(1, io, 0), 0x11, "VTL1's own IN is not; the device has not seen the OUT");
    report(told == before + 2, "nor told");
    report_equal(in_vtl(1, install, 2), HV_STATUS_SUCCESS, "VTL1 wants to know of OUT alone");
    report(inb(PORT) == 0x11 && told == before + 2, "an IN reaches the device");
    report_equal(in_vtl(1, install, 0), HV_STATUS_SUCCESS, "and of nothing");
    outb(PORT, 0x33);
    report(inb(PORT) == 0x33 && told == before + 2, "both do");
}

void test(void)
{
    vtls_start(1 << 1);
    report_equal(install_intercept(HvInterceptTypeX64IoPort, 3, PORT), HV_STATUS_ACCESS_DENIED, "VTL0 intercepts nothing");
    on_message = emulate;
    on_each_vp(check);
}

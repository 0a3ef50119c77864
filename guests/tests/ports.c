/* Ports and connections within the partition: messages and events to a SINT of a VP, and from VTL0 to VTL1. */
#include "vtls.h"

#define MESSAGE_PORT 1
#define EVENT_PORT 2
#define SINT 5
#define VECTOR 0x67
#define MESSAGE_TYPE 0x77

struct port_info {
    u32 type, padding, sint, vp;
    u16 base_flag, flag_count;
    u32 reserved;
};

static u16 create_port(u32 id, u8 vtl, u8 minimum, struct port_info info)
{
    struct {
        u64 partition;
        u32 id;
        u8 vtl, minimum;
        u16 reserved;
        u64 connection_partition;
        struct port_info info;
        u64 proximity;
    } *input = hv_input();

    input->partition = input->connection_partition = HV_PARTITION_ID_SELF;
    input->id = id;
    input->vtl = vtl;
    input->minimum = minimum;
    input->info = info;
    return HV_STATUS(hv_call(HvCallCreatePort));
}

static u16 connect(u32 connection, u8 vtl, u32 port, u32 type)
{
    struct {
        u64 partition;
        u32 connection;
        u8 vtl, reserved[3];
        u64 port_partition;
        u32 port, reserved2;
        u32 type, padding;
        u8 information[24];
        u64 proximity;
    } *input = hv_input();

    input->partition = input->port_partition = HV_PARTITION_ID_SELF;
    input->connection = connection;
    input->vtl = vtl;
    input->port = port;
    input->type = type;
    return HV_STATUS(hv_call(HvCallConnectPort));
}

static u16 end(u64 code, u32 id)
{
    struct {
        u64 partition;
        u32 id, reserved;
    } *input = hv_input();

    input->partition = HV_PARTITION_ID_SELF;
    input->id = id;
    return HV_STATUS(hv_call(code));
}

static u16 post(u32 connection, u32 type, u32 size, u8 value)
{
    struct {
        u32 connection, padding, type, size;
        u8 payload[240];
    } *input = hv_input();

    input->connection = connection;
    input->type = type;
    input->size = size;
    fill(input->payload, value, 240);
    return HV_STATUS(hv_call(HvCallPostMessage));
}

static u16 signal(u32 connection, u16 flag)
{
    struct {
        u32 connection;
        u16 flag, reserved;
    } *input = hv_input();

    input->connection = connection;
    input->flag = flag;
    return HV_STATUS(hv_call(HvCallSignalEvent));
}

static void open_synic(struct vp *vp)
{
    wrmsr(HV_X64_MSR_SIMP, (u64)vp->message_page | HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SIEFP, (u64)vp->event_page | HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SCONTROL, HV_MSR_ENABLE);
    wrmsr(HV_X64_MSR_SINT0 + SINT, VECTOR);
}

static void receive(struct vp *vp)
{
    volatile struct hv_message *slot = (void *)(vp->message_page + 256 * SINT);

    report(wait_interrupts(vp, VECTOR, 1), "the message interrupts its VP");
    report(slot->type == MESSAGE_TYPE && slot->payload_size == 100, "it has the type and size that were posted");
    report(slot->payload[0] == vp->index + 1 && slot->payload[99] == vp->index + 1, "and the payload");
    report(slot->origin == 0x100 + vp->index, "and the port that it came by");
    slot->type = HvMessageTypeNone;
}

static void receive_event(struct vp *vp)
{
    volatile u8 *flags = vp->event_page + 256 * SINT;

    report(wait_interrupts(vp, VECTOR, 2), "the event interrupts its VP");
    report_equal(flags[4], 1 << 3, "flag 32 + 3 is set");
    flags[4] = 0;
}

static void to_each_vp(void)
{
    for (u32 i = 0; i < vp_count; i++) {
        report_equal(create_port(0x100 + i, 0, 0, (struct port_info){.type = MESSAGE_PORT, .sint = SINT, .vp = i}),
                     HV_STATUS_SUCCESS, "a message port of each VP");
        report_equal(connect(0x200 + i, 0, 0x100 + i, MESSAGE_PORT), HV_STATUS_SUCCESS, "a connection to it");
        report_equal(post(0x200 + i, MESSAGE_TYPE, 100, (u8)(i + 1)), HV_STATUS_SUCCESS, "a message");
        smp_run(i, receive);
        report_equal(create_port(0x300 + i, 0, 0,
                                 (struct port_info){
                                     .type = EVENT_PORT, .sint = SINT, .vp = i, .base_flag = 32, .flag_count = 8}),
                     HV_STATUS_SUCCESS, "an event port of each VP");
        report_equal(connect(0x400 + i, 0, 0x300 + i, EVENT_PORT), HV_STATUS_SUCCESS, "a connection to it");
        report_equal(signal(0x400 + i, 3), HV_STATUS_SUCCESS, "an event");
        smp_run(i, receive_event);
        report_equal(signal(0x400 + i, 8), HV_STATUS_INVALID_PARAMETER, "a flag beyond the port's");
    }
}

static void fill_buffers(struct vp *vp)
{
    volatile struct hv_message *slot = (void *)(vp->message_page + 256 * SINT);
    u32 posted = 0, taken = 0;
    u16 status;

    while ((status = post(0x200, MESSAGE_TYPE, 8, (u8)posted)) == HV_STATUS_SUCCESS && posted < 100)
        posted++;
    report_equal(status, HV_STATUS_INSUFFICIENT_BUFFERS, "a port has so many buffers");
    report(posted > 1 && slot->flags & HV_MESSAGE_FLAG_PENDING, "%u messages; MessagePending is set", posted);
    bool ordered = true;
    while (slot->type != HvMessageTypeNone && taken < 100) {
        ordered &= slot->payload[0] == taken++;
        slot->type = HvMessageTypeNone;
        wrmsr(HV_X64_MSR_EOM, 0);
    }
    report(ordered && taken == posted, "EOM brings the others, in order");
}

static u64 vtl1_port(u64 unused)
{
    (void)unused;
    wrmsr(HV_X64_MSR_SINT0 + SINT, VECTOR);
    return create_port(0x500, 1, 0, (struct port_info){.type = MESSAGE_PORT, .sint = SINT, .vp = 0}) |
           connect(0x501, 0, 0x500, MESSAGE_PORT);
}

void test(void)
{
    on_each_vp(open_synic);
    to_each_vp();
    fill_buffers(vps);
    report_equal(post(0x200, MESSAGE_TYPE, 241, 0), HV_STATUS_INVALID_PARAMETER, "241 bytes of payload");
    report_equal(post(0x200, 0x80000001, 8, 0), HV_STATUS_INVALID_PARAMETER, "a type of the hypervisor's");
    report_equal(post(0xabc, MESSAGE_TYPE, 8, 0), HV_STATUS_INVALID_CONNECTION_ID, "a connection that does not exist");
    report_equal(end(HvCallDisconnectPort, 0x200), HV_STATUS_SUCCESS, "a connection goes");
    report_equal(post(0x200, MESSAGE_TYPE, 8, 0), HV_STATUS_INVALID_CONNECTION_ID, "and is gone");
    report_equal(end(HvCallDeletePort, 0x300), HV_STATUS_SUCCESS, "a port goes");
    report(signal(0x400, 0) != HV_STATUS_SUCCESS, "and its connection with it");

    vtls_start(1 << 1);
    report_equal(create_port(0x502, 1, 0, (struct port_info){.type = MESSAGE_PORT}), HV_STATUS_ACCESS_DENIED,
                 "VTL0 makes no port of VTL1");
    report_equal(in_vtl(1, vtl1_port, 0), HV_STATUS_SUCCESS, "VTL1 makes one, and a connection for VTL0");
    report_equal(post(0x501, MESSAGE_TYPE, 8, 0), HV_STATUS_SUCCESS, "VTL0 posts to it");
    for (u32 i = 0; i < SPINS_FOR_NOTHING; i++)
        cpu_relax();
    report_equal(vp_of(1, 0)->interrupts[VECTOR], 1, "VTL1 has it at once");
}

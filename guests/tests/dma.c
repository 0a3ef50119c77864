/* Devices reach memory with VTL0's rights: fw_cfg's DMA neither reads nor writes what VTL1 has closed. */
#include "vtls.h"

#define FW_CFG_DMA 0x514
#define FW_CFG_SIGNATURE 0
#define DMA_ERROR 1
#define DMA_READ 2
#define DMA_SELECT 8

static u8 open_page[PAGE_SIZE] ALIGNED_PAGE, closed[PAGE_SIZE] ALIGNED_PAGE, read_only[PAGE_SIZE] ALIGNED_PAGE;

struct __attribute__((packed)) dma {
    u32 control, length;
    u64 address;
};

static u32 swap32(u32 x) { return __builtin_bswap32(x); }

static void start_dma(volatile struct dma *d)
{
    u64 address = (u64)d;

    asm volatile("outl %0, %1" : : "a"(swap32((u32)(address >> 32))), "d"((u16)FW_CFG_DMA) : "memory");
    asm volatile("outl %0, %1" : : "a"(swap32((u32)address)), "d"((u16)(FW_CFG_DMA + 4)) : "memory");
}

/* Has the device write its signature to `to`; what the control word became. */
static u32 read_signature(void *to)
{
    static volatile struct dma d;

    d.control = swap32(FW_CFG_SIGNATURE << 16 | DMA_SELECT | DMA_READ);
    d.length = swap32(4);
    d.address = __builtin_bswap64((u64)to);
    start_dma(&d);
    return swap32(d.control);
}

static u64 close_pages(u64 unused)
{
    (void)unused;
    hv_protect_pages(HV_INPUT_VTL(0), (u64)closed, 1, HV_MAP_GPA_NONE);
    hv_protect_pages(HV_INPUT_VTL(0), (u64)read_only, 1, HV_MAP_GPA_READ);
    return 0;
}

static u64 word(u64 address) { return *(volatile u32 *)address; }

static u64 from_vtl1(u64 unused)
{
    (void)unused;
    return read_signature(closed);
}

void test(void)
{
    vtls_start(1 << 1);
    in_vtl(1, protect_by_default, HV_MAP_GPA_ALL);
    fill(closed, 0x11, 64);
    fill(read_only, 0x22, 64);
    report_equal(read_signature(open_page), 0, "the device writes to an open page");
    report_equal(word((u64)open_page), 0x554d4551, "its signature is there");
    report_equal(read_signature(closed), 0, "and to one that is not closed yet");
    fill(closed, 0x11, 64);
    in_vtl(1, close_pages, 0);
    report_equal(read_signature(closed) & DMA_ERROR, DMA_ERROR, "closed, the page is out of its reach");
    report_equal(in_vtl(1, word, (u64)closed), 0x11111111, "nothing was written");
    report_equal(read_signature(read_only) & DMA_ERROR, DMA_ERROR, "so is a page that VTL0 may only read");
    report_equal(in_vtl(1, word, (u64)read_only), 0x22222222, "nothing was written");
    report_equal(in_vtl(1, from_vtl1, 0) & DMA_ERROR, DMA_ERROR, "the device has VTL0's rights also when VTL1 asks");

    /* The descriptor itself in a closed page: the device cannot read it, and can say so nowhere. */
    start_dma((volatile struct dma *)closed);
    report_equal(in_vtl(1, word, (u64)closed), 0x11111111, "a command that lies in a closed page is not read");
}

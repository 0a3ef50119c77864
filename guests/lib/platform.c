#include "platform.h"
#include "cpu.h"

/* Constants of QEMU's q35 and of vtlkit's PC; S5 is sleep type 0 in the DSDT of both. */
#define PM1A_CONTROL 0x604
#define PM1A_SLEEP_S5 0x2000
#define PIC1_MASK 0x21
#define PIC2_MASK 0xa1
#define EXIT_PORT 0xf4
#define SCRATCH_PORT 0xe0
#define FW_CFG_SELECTOR 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_SIGNATURE 0
#define FW_CFG_NB_CPUS 5

#define START_INFO_MAGIC 0x336ec578
#define MADT_LOCAL_APIC 0
#define MADT_LOCAL_X2APIC 9
#define MADT_ENABLED 1

struct hvm_start_info {
    u32 magic, version, flags, modules;
    u64 module_list, command_line, rsdp;
};

struct __attribute__((packed)) rsdp {
    char signature[8];
    u8 checksum;
    char oem[6];
    u8 revision;
    u32 rsdt;
    u32 length;
    u64 xsdt;
};

struct __attribute__((packed)) acpi_table {
    char signature[4];
    u32 length;
    u8 rest[28];
    u8 body[];
};

extern const u32 start_info;

static const struct hvm_start_info *loader(void)
{
    const struct hvm_start_info *info = (const void *)(u64)start_info;
    return info && info->magic == START_INFO_MAGIC ? info : NULL;
}

const char *command_line_word(const char *name)
{
    const struct hvm_start_info *info = loader();
    const char *p = info ? (const char *)info->command_line : NULL;

    while (p && *p) {
        while (*p == ' ')
            p++;
        const char *n = name;
        while (*n && *p == *n)
            p++, n++;
        if (!*n && (*p == ' ' || *p == 0 || n[-1] == '=')) {
            while (*p == ' ')
                p++;
            return p;
        }
        while (*p && *p != ' ')
            p++;
    }
    return NULL;
}

u64 parse_number(const char *text, u64 otherwise)
{
    u64 value = 0;

    if (!text || *text < '0' || *text > '9')
        return otherwise;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (u64)(*text++ - '0');
    return value;
}

static bool same(const char *a, const char *b, u32 n)
{
    while (n && *a == *b)
        a++, b++, n--;
    return !n;
}

static bool sums_to_zero(const void *p, u32 n)
{
    u8 sum = 0;

    for (const u8 *b = p; n--; b++)
        sum = (u8)(sum + *b);
    return !sum;
}

static u32 read32(const u8 *p) { return p[0] | p[1] << 8 | p[2] << 16 | (u32)p[3] << 24; }

static const struct acpi_table *find_madt(void)
{
    const struct hvm_start_info *info = loader();
    const struct rsdp *rsdp = info ? (const void *)info->rsdp : NULL;

    if (!rsdp || !same(rsdp->signature, "RSD PTR ", 8) || !sums_to_zero(rsdp, 20))
        return NULL;
    bool wide = rsdp->revision >= 2 && rsdp->xsdt;
    const struct acpi_table *root = (const void *)(wide ? rsdp->xsdt : rsdp->rsdt);
    u32 size = wide ? 8 : 4;

    for (u32 at = 0; at + size <= root->length - sizeof *root; at += size) {
        u64 address = read32(root->body + at);
        if (wide)
            address |= (u64)read32(root->body + at + 4) << 32;
        const struct acpi_table *table = (const void *)address;
        if (same(table->signature, "APIC", 4) && sums_to_zero(table, table->length))
            return table;
    }
    return NULL;
}

static u32 processors_of_madt(const struct acpi_table *madt, u32 apic_ids[MAX_VPS])
{
    u32 count = 0;
    const u8 *end = (const u8 *)madt + madt->length;

    /* The entries follow the local APIC address and the flags. */
    for (const u8 *e = madt->body + 8; e + 2 <= end && e[1] >= 2 && count < MAX_VPS; e += e[1]) {
        if (e[0] == MADT_LOCAL_APIC && read32(e + 4) & MADT_ENABLED)
            apic_ids[count++] = e[3];
        else if (e[0] == MADT_LOCAL_X2APIC && read32(e + 8) & MADT_ENABLED)
            apic_ids[count++] = read32(e + 4);
    }
    return count;
}

static void fw_cfg_read(u16 item, u8 *to, u32 n)
{
    outw(FW_CFG_SELECTOR, item);
    while (n--)
        *to++ = inb(FW_CFG_DATA);
}

u32 processors(u32 apic_ids[MAX_VPS])
{
    const struct acpi_table *madt = find_madt();
    u32 count = madt ? processors_of_madt(madt, apic_ids) : 0;

    if (count)
        return count;

    u8 signature[4], cpus[2];
    fw_cfg_read(FW_CFG_SIGNATURE, signature, sizeof signature);
    if (same((const char *)signature, "QEMU", 4)) {
        fw_cfg_read(FW_CFG_NB_CPUS, cpus, sizeof cpus);
        count = cpus[0] | (u32)cpus[1] << 8;
    } else {
        count = cpuid(1).ebx >> 16 & 0xff;
    }
    if (!count)
        count = 1;
    if (count > MAX_VPS)
        count = MAX_VPS;
    for (u32 i = 0; i < count; i++)
        apic_ids[i] = i;
    return count;
}

void mask_legacy_interrupts(void)
{
    outb(PIC1_MASK, 0xff);
    outb(PIC2_MASK, 0xff);
}

u8 platform_read_scratch(void) { return inb(SCRATCH_PORT); }

void platform_write_scratch(u8 value) { outb(SCRATCH_PORT, value); }

void exit_with(u8 value)
{
    outb(EXIT_PORT, value);
    halt_forever();
}

void power_off(void)
{
    outw(PM1A_CONTROL, PM1A_SLEEP_S5);
    halt_forever();
}

#include "paging.h"

#define PTE_USER 0x04
#define PTE_WRITE_THROUGH 0x08
#define PTE_CACHE_DISABLE 0x10
#define PTE_LARGE 0x80
#define LARGE_PAGE_SHIFT 21
#define DEVICES_START 0xc0000000

struct page_tables boot_tables;

void paging_build(struct page_tables *tables)
{
    for (u64 i = 0; i < 4 * 512; i++) {
        u64 entry = i << LARGE_PAGE_SHIFT | PTE_LARGE | PTE_WRITE | PTE_PRESENT;
        if (entry >= DEVICES_START)
            entry |= PTE_CACHE_DISABLE | PTE_WRITE_THROUGH;
        tables->directory[i] = entry;
    }
    for (u64 i = 1; i < 512; i++)
        tables->low[i] = i * PAGE_SIZE | PTE_WRITE | PTE_PRESENT;
    tables->directory[0] = (u64)tables->low | PTE_WRITE | PTE_PRESENT;
    for (u64 i = 0; i < 4; i++)
        tables->pdpt[i] = (u64)(tables->directory + 512 * i) | PTE_WRITE | PTE_PRESENT;
    tables->pml4[0] = (u64)tables->pdpt | PTE_WRITE | PTE_PRESENT;
}

void paging_permit_user(struct page_tables *tables)
{
    u64 *entries = (u64 *)tables;

    for (u64 i = 0; i < sizeof *tables / sizeof *entries; i++)
        if (entries[i] & PTE_PRESENT)
            entries[i] |= PTE_USER;
}

void paging_map(struct page_tables *tables, u64 virtual_address, u64 physical_address, u64 flags)
{
    tables->low[virtual_address / PAGE_SIZE] = physical_address | flags;
}

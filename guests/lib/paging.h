/* Identity page tables: the first 4 GiB in 2 MiB pages, the first 2 MiB in 4 KiB pages so that page 0 can be absent. */
#ifndef PAGING_H
#define PAGING_H

#include "vp.h"

#define PAGE_SIZE 4096
#define PTE_PRESENT 0x01
#define PTE_WRITE 0x02

struct page_tables {
    u64 pml4[512];
    u64 pdpt[512];
    u64 directory[4 * 512];
    u64 low[512];
} __attribute__((aligned(4096)));

extern struct page_tables boot_tables;

void paging_build(struct page_tables *tables);

/* Makes all that is mapped accessible from CPL 3. The caller flushes. */
void paging_permit_user(struct page_tables *tables);

/* Maps one page below 2 MiB; `flags` as in a page table entry. The caller flushes. */
void paging_map(struct page_tables *tables, u64 virtual_address, u64 physical_address, u64 flags);

#endif

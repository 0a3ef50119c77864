/* Identity page tables: the first 4 GiB in 2 MiB pages, the first 2 MiB in 4 KiB pages so that page 0 can be absent. */
#ifndef PAGING_H
#define PAGING_H

#include "vp.h"

#define PAGE_SIZE 4096

struct page_tables {
    u64 pml4[512];
    u64 pdpt[512];
    u64 directory[4 * 512];
    u64 low[512];
} __attribute__((aligned(4096)));

extern struct page_tables boot_tables;

void paging_build(struct page_tables *tables);

#endif

/* Hyper-V as a guest calls it. Every call uses the running VP's own input page, and a status other than success fails the run. */
#ifndef HYPERV_H
#define HYPERV_H

#include "hvdef.h"
#include "paging.h"

/* NULL if the partition may use VSM, else why not. */
const char *hv_why_no_vsm(void);

/* Identifies the guest OS and puts the hypercall page of the running VTL at `page`. Once a VTL, not once a VP. */
void hv_enable_hypercall_page(void *page);

/* Lets the running VP and VTL make hypercalls through that page. */
void hv_use_hypercall_page(struct vp *vp, void *page);

/* Reads the code page offsets and lets the running VP and VTL make VTL calls (from VTL0) or VTL returns (from above). */
void hv_learn_vtl_switch(struct vp *vp, void *page);

u64 hv_get_register(u32 name);
void hv_set_register(u8 input_vtl, u32 name, u64 value);

void hv_enable_partition_vtl(u8 vtl);

/* Enables the VTL of `target` on its VP: it will start in vtl1_entry with these page tables. */
void hv_enable_vp_vtl(struct vp *target, struct page_tables *tables);

/* Sets what VTL0 may do with `count` pages from `gpa` on. */
void hv_protect_pages(u64 gpa, u64 count, u32 flags);

/* The VP assist page, the SynIC with SINT0 on `vector`, and the local APIC of the running VP and VTL. */
void hv_enable_assist_page(struct vp *vp);
void hv_enable_synic(struct vp *vp, u8 vector);

/* Takes the message out of the slot of SINT0; false if there is none. */
bool hv_take_message(struct vp *vp, struct hv_message *message);

static inline struct hv_vp_assist_page *hv_assist_page(struct vp *vp) { return (void *)vp->assist_page; }

u64 vtl_call(u64 service, u64 a, u64 b, u64 *result);
void vtl_return(u64 control);
void vtl1_entry(void);

/* Defined by each guest that uses VTL1: its first code on each VP. */
void vtl1_main(struct vp *vp) __attribute__((noreturn));

#endif

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

/* Reads the code page offsets and lets the running VP and VTL make VTL calls and VTL returns. */
void hv_learn_vtl_switch(struct vp *vp, void *page);

/*
 * Any hypercall by the ordinary entry of the hypercall page, with whatever input value and parameters; the result value.
 * `hv_call` passes the VP's own pages: what is in `hv_input`, which is zeroed when it is asked for, and `hv_output`.
 */
u64 hv_hypercall(u64 control, u64 input, u64 output);
void *hv_input(void);
void *hv_output(void);
u64 hv_call(u64 control);

#define HV_REPS(n) ((u64)(n) << 32)
#define HV_REP_START(n) ((u64)(n) << 48)
#define HV_FAST (1ull << 16)
#define HV_VARIABLE_HEADER(qwords) ((u64)(qwords) << 17)
#define HV_STATUS(result) ((u16)(result))
#define HV_REPS_DONE(result) ((u32)((result) >> 32 & 0xfff))

/* The status of reading or writing the low 64 bits of one register; for VP index and input VTL as the call takes them. */
u16 hv_try_get_register(u32 vp_index, u8 input_vtl, u32 name, u64 *value);
u16 hv_try_set_register(u32 vp_index, u8 input_vtl, u32 name, u64 value);

u64 hv_get_register(u32 name);
u64 hv_get_register_of(u8 input_vtl, u32 name);
void hv_set_register(u8 input_vtl, u32 name, u64 value);

void hv_enable_partition_vtl(u8 vtl);

/* The initial context of the VTL of `target` on its VP: 64-bit code that starts in target->main with these page tables. */
void hv_initial_context(struct hv_initial_vp_context *context, struct vp *target, struct page_tables *tables);

/* Enables the VTL of `target` on its VP, in that context. */
void hv_enable_vp_vtl(struct vp *target, struct page_tables *tables);

/* Sets what the VTL that `input_vtl` names may do with `count` pages from `gpa` on. */
void hv_protect_pages(u8 input_vtl, u64 gpa, u64 count, u32 flags);

/* The VP assist page, the SynIC with SINT0 on `vector`, and the local APIC of the running VP and VTL. */
void hv_enable_assist_page(struct vp *vp);
void hv_enable_synic(struct vp *vp, u8 vector);

/* Takes the message out of the slot of SINT0; false if there is none. */
bool hv_take_message(struct vp *vp, struct hv_message *message);

static inline struct hv_vp_assist_page *hv_assist_page(struct vp *vp) { return (void *)vp->assist_page; }

u64 vtl_call(u64 service, u64 a, u64 b, u64 *result);
void vtl_return(u64 control);
void vtl_entry(void);

#endif

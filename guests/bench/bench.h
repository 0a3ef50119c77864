/* The loops of hyperv.c; `n` is how often each is turned. */
#ifndef BENCH_H
#define BENCH_H

#include "vp.h"

void bench_pvflush(u64 n);
void bench_pvipi(u64 n);
void bench_synicmsg(u64 n);
void bench_stimer(u64 n);

#endif

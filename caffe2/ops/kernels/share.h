/* Work among the threads of a parallel region. Each has a stretch of its own, the same in every
 * run, so that it finds in its cache what it wrote there before; who is done helps the others, and
 * nobody waits for a thread that comes late. */
#ifndef CAFFE2_SHARE_H
#define CAFFE2_SHARE_H
#include <omp.h>

#include "simd.h"

typedef struct {
    long next, end;
} __attribute__((aligned(64))) stretch_t;

/* Divides items 0..n-1 into `nth` stretches. */
INLINE void share_out(long n, int nth, stretch_t* all) {
    for (int t = 0; t < nth; t++) all[t] = (stretch_t){n * t / nth, n * (t + 1) / nth};
}

/* The item that the calling thread does after `last` (-1 at first), or -1. */
INLINE long take(long last, long n, int nth, stretch_t* all) {
    const int me = nth > 1 ? omp_get_thread_num() : 0;
    /* one each: no memory is passed to and fro, which would take as long as starting the threads */
    if (n == nth && nth == omp_get_num_threads()) return last < 0 ? me : -1;
    for (int k = 0; k < nth; k++) {
        stretch_t* s = all + (me + k) % nth;
        if (__atomic_load_n(&s->next, __ATOMIC_RELAXED) >= s->end) continue;
        const long i = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
        if (i < s->end) return i;
    }
    return -1;
}

/* Notes that something failed; where nothing does, threads pass no memory to and fro for it. */
INLINE void note(int* failed, int now) {
    if (now) __atomic_store_n(failed, 1, __ATOMIC_RELAXED);
}
#endif

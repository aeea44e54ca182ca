#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* Memory for free(), aligned to cache lines. Large pieces ask for huge pages, as far as those lie wholly inside:
   a large batch spends 1 to 3 % of its time on walking the tables of small pages. */
static inline void* aligned_new(size_t n) {
    enum { LINE = 64, HUGE_PAGE = 1 << 21 };
    void* p;
    if (posix_memalign(&p, n < HUGE_PAGE ? LINE : HUGE_PAGE, n)) return NULL;
#ifdef MADV_HUGEPAGE
    if (n >= HUGE_PAGE) madvise(p, n & ~(size_t)(HUGE_PAGE - 1), MADV_HUGEPAGE);
#endif
    return p;
}

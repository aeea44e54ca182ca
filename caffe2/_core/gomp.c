/* What GCC's code calls to run OpenMP's regions: hidden in each module, so that no other runtime
 * library in the process takes these names, nor we theirs. */
#include "team.h"

void GOMP_parallel(void (*f)(void*), void* data, unsigned threads, unsigned flags) {
    (void)flags;
    caffe2_team_run(f, data, threads);
}

void GOMP_barrier(void) { caffe2_team_barrier(); }

int omp_get_thread_num(void) { return caffe2_team_rank(); }

int omp_get_num_threads(void) { return caffe2_team_size(); }

/* Asked by loops that do not say how many threads they want, of which there are none. */
int omp_get_max_threads(void) { return 1; }

/* Threads for OpenMP's parallel regions; see team.c. */
#ifndef CAFFE2_TEAM_H
#define CAFFE2_TEAM_H

#define CAFFE2_TEAM __attribute__((visibility("default")))

/* Runs f(data) as often as `size` says, each in a thread of its own, of which the caller is one;
 * fewer where threads cannot be had, or within another run. */
CAFFE2_TEAM void caffe2_team_run(void (*f)(void*), void* data, unsigned size);
/* Waits for all threads of the run; those that have not begun can still be waited for. */
CAFFE2_TEAM void caffe2_team_barrier(void);
/* What the calling thread will read after its next run, in pieces, which must stay: it is fetched
 * while threads wait for each other at the end of that run. */
typedef struct {
    const void* at;
    int bytes;
} caffe2_piece_t;
CAFFE2_TEAM void caffe2_team_ahead(const caffe2_piece_t* pieces, int n);
/* 0 for the caller, 1... */
CAFFE2_TEAM int caffe2_team_rank(void);
CAFFE2_TEAM int caffe2_team_size(void);
#endif

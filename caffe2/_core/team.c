/* The one pool of threads that compute.
 *
 * Loops are OpenMP's; where GCC compiles them, these threads run them in place of those of its
 * runtime library. Operators of small nets take 10 to 100 us, and many follow each other, with some
 * Python in between. So a region must start and end quickly (one cache line goes to each thread, and
 * one comes back), threads must be awake when the next one comes, and yet must not keep a processor
 * from those who compute: whoever waits looks for some microseconds, then lets others go first at
 * each turn, and sleeps after PATIENCE. A thread that has not begun when the caller is done, because
 * it is not let run, is not waited for: the caller does its part.
 *
 * Several threads may run regions at once; each holds those of the pool that are free.
 *
 * What one thread writes and another looks at costs 0.1 us each time it changes sides. So callers
 * write one line of a worker, and the worker another: regions are numbered; region k is begun when
 * `answer` goes from 2k - 2 to 2k - 1, and done when it is 2k. */
#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#define MOST 255       /* threads of the pool */
#define LOOKS 200      /* for work or for others, before these are let go first, */
#define YIELDS 200     /* and before a nap */
#define PATIENCE .0005 /* seconds */
#define STACK 2048     /* bytes of a caller's stack that its regions are likely to read */

/* A region, in its caller's memory. */
typedef struct {
    atomic_int arrived, passed; /* at barriers; barriers passed */
} region_t;

typedef struct {
    _Alignas(128) atomic_ulong posted; /* by the caller: the region's number */
    int rank, size;
    void (*f)(void*);
    void* data;
    region_t* region;
    _Alignas(128) atomic_ulong answer; /* by the worker */
    _Alignas(128) atomic_int held, asleep;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} worker_t;

static worker_t workers[MOST];
static atomic_int count;
static pthread_mutex_t hiring = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static _Thread_local struct {
    int rank, size; /* size 0: in no region */
    region_t* region;
} me;

static _Thread_local struct {
    const caffe2_piece_t* pieces;
    int n;
} ahead;

static void pause_a_little(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

/* Between two looks for what another thread is about to do; its processor may be taken, and ours be
 * free for it. */
static void wait_a_little(int* looks) {
    if (++*looks < LOOKS) pause_a_little();
    else if (*looks < LOOKS + YIELDS) sched_yield();
    else nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* The number of the next region after `last`. */
static unsigned long await_work(worker_t* w, unsigned long last) {
    unsigned long number;
    int looks = 0;
    double start = 0;
    while ((number = atomic_load_explicit(&w->posted, memory_order_acquire)) == last) {
        __builtin_prefetch(&w->answer, 1); /* the last caller has read it */
        if (++looks < LOOKS) pause_a_little();
        else if (start == 0) start = now();
        else if (now() - start < PATIENCE) sched_yield();
        else {
            pthread_mutex_lock(&w->lock);
            atomic_store(&w->asleep, 1);
            while (atomic_load(&w->posted) == last) pthread_cond_wait(&w->wake, &w->lock);
            atomic_store(&w->asleep, 0);
            pthread_mutex_unlock(&w->lock);
        }
    }
    return number;
}

static void* work(void* p) {
    worker_t* w = p;
    for (unsigned long number = 0;;) {
        number = await_work(w, number);
        unsigned long answer = 2 * number - 2;
        if (!atomic_compare_exchange_strong(&w->answer, &answer, 2 * number - 1)) continue;
        me.rank = w->rank;
        me.size = w->size;
        me.region = w->region;
        w->f(w->data);
        me.size = 0;
        atomic_store_explicit(&w->answer, 2 * number, memory_order_release);
    }
    return NULL;
}

/* In the child of a fork there is but one thread. */
static void after_fork(void) {
    atomic_store(&count, 0);
    pthread_mutex_init(&hiring, NULL);
}

static void prepare(void) { pthread_atfork(NULL, NULL, after_fork); }

/* One more worker, held by the caller, or NULL. Signals are for the threads of Python. */
static worker_t* hire(void) {
    pthread_t thread;
    sigset_t all, before;
    worker_t* w = NULL;
    pthread_once(&once, prepare);
    pthread_mutex_lock(&hiring);
    const int n = atomic_load(&count);
    if (n < MOST) {
        w = workers + n;
        pthread_mutex_init(&w->lock, NULL);
        pthread_cond_init(&w->wake, NULL);
        atomic_store(&w->asleep, 0);
        atomic_store(&w->posted, 0);
        atomic_store(&w->answer, 0);
        atomic_store(&w->held, 1);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        if (pthread_create(&thread, NULL, work, w)) w = NULL;
        else {
            pthread_detach(thread);
            atomic_store(&count, n + 1);
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_mutex_unlock(&hiring);
    return w;
}

/* Holds up to n workers: the first ones, which in turn are the same for a caller that is alone. */
static int hold(int n, worker_t** held) {
    int have = 0;
    const int all = atomic_load_explicit(&count, memory_order_acquire);
    for (int i = 0; i < all && have < n; i++) {
        if (!atomic_load_explicit(&workers[i].held, memory_order_relaxed) &&
            !atomic_exchange(&workers[i].held, 1))
            held[have++] = workers + i;
    }
    for (worker_t* w; have < n && (w = hire()); have++) held[have] = w;
    return have;
}

static void post(worker_t* w) {
    atomic_store(&w->posted, atomic_load_explicit(&w->posted, memory_order_relaxed) + 1);
    if (!atomic_load(&w->asleep)) return;
    pthread_mutex_lock(&w->lock);
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

void caffe2_team_ahead(const caffe2_piece_t* pieces, int n) {
    ahead.pieces = pieces;
    ahead.n = n;
}

static void fetch_ahead(void) {
    for (int i = 0; i < ahead.n; i++)
        for (int at = 0; at < ahead.pieces[i].bytes; at += 64)
            __builtin_prefetch((const char*)ahead.pieces[i].at + at);
    ahead.n = 0;
}

void caffe2_team_run(void (*f)(void*), void* data, unsigned size) {
    const int rank = me.rank, outer = me.size;
    region_t* const around = me.region;
    if (size > MOST) size = MOST;
    worker_t* held[size + 1];
    const int n = size > 1 && outer < 2 ? hold((int)size - 1, held) : 0;
    region_t region = {0};
    me.rank = 0;
    me.size = n + 1;
    me.region = &region;
    for (int i = 0; i < n; i++) {
        worker_t* w = held[i];
        w->rank = i + 1;
        w->size = n + 1;
        w->f = f;
        w->data = data;
        w->region = &region;
        post(w);
    }
    f(data);
    if (n) fetch_ahead();
    /* what others have read comes back before the next operator writes it */
    for (int i = 0; n && i < STACK; i += 64)
        __builtin_prefetch((char*)__builtin_frame_address(0) + i, 1);
    for (int i = 0; i < n; i++) {
        worker_t* w = held[i];
        const unsigned long number = atomic_load_explicit(&w->posted, memory_order_relaxed);
        unsigned long answer = atomic_load_explicit(&w->answer, memory_order_acquire);
        if (answer == 2 * number - 2 &&
            atomic_compare_exchange_strong(&w->answer, &answer, 2 * number)) {
            me.rank = i + 1; /* it cannot meet a barrier: the caller has passed all of them */
            f(data);
        } else
            for (int looks = 0;
                 atomic_load_explicit(&w->answer, memory_order_acquire) != 2 * number;)
                wait_a_little(&looks);
        atomic_store_explicit(&w->held, 0, memory_order_release);
    }
    me.rank = rank;
    me.size = outer;
    me.region = around;
}

void caffe2_team_barrier(void) {
    region_t* r = me.region;
    if (me.size < 2) return;
    const int passed = atomic_load_explicit(&r->passed, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&r->arrived, 1, memory_order_acq_rel) == me.size - 1) {
        atomic_store_explicit(&r->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&r->passed, passed + 1, memory_order_release);
        return;
    }
    for (int looks = 0; atomic_load_explicit(&r->passed, memory_order_acquire) == passed;)
        wait_a_little(&looks);
}

int caffe2_team_rank(void) { return me.rank; }

int caffe2_team_size(void) { return me.size > 1 ? me.size : 1; }

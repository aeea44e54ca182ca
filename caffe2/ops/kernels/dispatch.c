/* Compiled for the baseline: what this processor has, and memory for the kernels. */
#include "kernels.h"

#include "caffe2/_core/memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#ifdef HAVE_amx
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const kernels_t kernels_v1;
#ifdef HAVE_v3
extern const kernels_t kernels_v3, kernels_v4;
static kernels_t without_vnni; /* v4 with the products of int8 of v3 */
#endif
#ifdef HAVE_amx
extern const kernels_t kernels_amx;

/* Whether the processor has tiles of bfloat16, and the system lets this process use them. */
static int may_use_tiles(void) {
    const unsigned tiles = 1u << 24, bfloat16 = 1u << 22;
    const long ask_for_state = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM of Linux 5.16 */
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    return (d & tiles) && (d & bfloat16) && !syscall(SYS_arch_prctl, ask_for_state, tile_data);
}
#endif

const kernels_t* kernels_level(const char* level) {
    const kernels_t* tables[4] = {&kernels_v1};
#ifdef HAVE_v3
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
        tables[1] = &kernels_v3;
    if (tables[1] && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        tables[2] = &kernels_v4;
    if (tables[2] && !__builtin_cpu_supports("avx512vnni")) {
        without_vnni = kernels_v4;
        without_vnni.igemm = kernels_v3.igemm;
        without_vnni.igemm_op = kernels_v3.igemm_op;
        without_vnni.igemm_pack_bytes = kernels_v3.igemm_pack_bytes;
        without_vnni.igemm_pack = kernels_v3.igemm_pack;
        tables[2] = &without_vnni;
    }
#ifdef HAVE_amx
    const int wanted = !level || !*level || !strcmp(level, kernels_amx.name);
    if (wanted && tables[2] == &kernels_v4 && may_use_tiles()) tables[3] = &kernels_amx;
#endif
#endif
    for (int i = 3; i >= 0; i--)
        if (tables[i] && (!level || !*level || !strcmp(level, tables[i]->name))) return tables[i];
    return NULL;
}

typedef struct {
    void* memory[SCRATCH_SLOTS];
    size_t bytes[SCRATCH_SLOTS];
} scratch_t;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int have_key;

static void free_scratch(void* p) {
    scratch_t* s = p;
    for (int i = 0; i < SCRATCH_SLOTS; i++) free(s->memory[i]);
    free(s);
}

static void make_key(void) { have_key = pthread_key_create(&key, free_scratch) == 0; }

void* kernels_scratch(int slot, size_t bytes) {
    static _Thread_local scratch_t* mine;
    if (!mine) {
        pthread_once(&once, make_key);
        if (!have_key || !(mine = calloc(1, sizeof *mine))) return NULL;
        if (pthread_setspecific(key, mine)) {
            free(mine);
            return mine = NULL;
        }
    }
    if (bytes > mine->bytes[slot] || !mine->memory[slot]) {
        if (bytes > (size_t)-1 / 2) return NULL;
        const size_t size = (bytes + bytes / 4 + 4096) & ~(size_t)4095;
        void* p = aligned_new(size);
        if (!p) return NULL;
        free(mine->memory[slot]);
        mine->memory[slot] = p;
        mine->bytes[slot] = size;
    }
    return mine->memory[slot];
}

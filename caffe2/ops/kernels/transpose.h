/* A tile of four by four 32-bit items, transposed in registers. Needs no more than the baseline. */
#ifndef CAFFE2_TRANSPOSE_H
#define CAFFE2_TRANSPOSE_H
#include <stdint.h>
#include <string.h>

typedef uint32_t items_t __attribute__((vector_size(16)));

#ifdef __clang__
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (items_t){i, j, k, l})
#endif

/* to[r * to_step + i] = x[i * step + r] for r, i in 0..3 */
static inline void transpose_4x4(uint32_t* to, int64_t to_step, const uint32_t* x, int64_t step) {
    items_t row[4], low[2], high[2];
    for (int i = 0; i < 4; i++) memcpy(&row[i], x + i * step, 16);
    for (int i = 0; i < 2; i++) {
        low[i] = PICK(row[2 * i], row[2 * i + 1], 0, 4, 1, 5);
        high[i] = PICK(row[2 * i], row[2 * i + 1], 2, 6, 3, 7);
    }
    row[0] = PICK(low[0], low[1], 0, 1, 4, 5);
    row[1] = PICK(low[0], low[1], 2, 3, 6, 7);
    row[2] = PICK(high[0], high[1], 0, 1, 4, 5);
    row[3] = PICK(high[0], high[1], 2, 3, 6, 7);
    for (int i = 0; i < 4; i++) memcpy(to + i * to_step, &row[i], 16);
}

/* rows x columns items, transposed: to[j * to_step + i] = x[i * step + j] */
static inline void transpose_any(const float* x, long step, long rows, long columns, float* to,
                                 long to_step) {
    for (long j = 0; j < columns; j += 4)
        for (long i = 0; i < rows; i += 4) {
            if (i + 4 <= rows && j + 4 <= columns) {
                transpose_4x4((uint32_t*)(to + j * to_step + i), to_step,
                              (const uint32_t*)(x + i * step + j), step);
                continue;
            }
            for (long c = j; c < columns && c < j + 4; c++)
                for (long r = i; r < rows && r < i + 4; r++) to[c * to_step + r] = x[r * step + c];
        }
}
#endif

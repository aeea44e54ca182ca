/* Images to the blocked layout and back. */
#include <string.h>

#include "conv16.h"
#include "transpose.h"

#define STRETCH 256 /* pixels that a thread does at once */

/* rows x columns items, transposed: to[j * to_step + i] = x[i * step + j] */
static void transpose(const float* x, long step, long rows, long columns, float* to, long to_step) {
    for (long j = 0; j < columns; j += 4)
        for (long i = 0; i < rows; i += 4) {
            if (i + 4 <= rows && j + 4 <= columns) {
                transpose_4x4((uint32_t*)(to + j * to_step + i), to_step,
                              (const uint32_t*)(x + i * step + j), step);
                continue;
            }
            for (long c = j; c < MIN(j + 4, columns); c++)
                for (long r = i; r < MIN(i + 4, rows); r++) to[c * to_step + r] = x[r * step + c];
        }
}

static void reorder(int back, long batch, int channels, long pixels, const float* x, float* y,
                    int nth) {
    const long blocks = BLOCKS(channels), stretches = DIVIDE_UP(pixels, STRETCH);
    nth = threads_for(4. * batch * channels * pixels, nth);
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static)
    for (long i = 0; i < batch * blocks * stretches; i++) {
        const long from = i % stretches * STRETCH, block = i / stretches % blocks;
        const long n = i / stretches / blocks, width = MIN(16, channels - 16 * block);
        const long plain = (n * channels + 16 * block) * pixels + from;
        const long blocked = ((n * blocks + block) * pixels + from) * 16;
        const long count = MIN(STRETCH, pixels - from);
        if (back) transpose(x + blocked, 16, count, width, y + plain, pixels);
        else {
            if (width < 16) memset(y + blocked, 0, count * 16 * sizeof(float));
            transpose(x + plain, pixels, width, count, y + blocked, 16);
        }
    }
}

void CAT(to16, ISA)(long batch, int channels, long pixels, const float* x, float* y, int nth) {
    reorder(0, batch, channels, pixels, x, y, nth);
}

void CAT(from16, ISA)(long batch, int channels, long pixels, const float* x, float* y, int nth) {
    reorder(1, batch, channels, pixels, x, y, nth);
}

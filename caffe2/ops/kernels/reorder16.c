/* Images to the blocked layout and back. */
#include <string.h>

#include "conv16.h"
#include "transpose.h"

#define STRETCH 256 /* pixels that a thread does at once */

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
        if (back) transpose_any(x + blocked, 16, count, width, y + plain, pixels);
        else {
            if (width < 16) memset(y + blocked, 0, count * 16 * sizeof(float));
            transpose_any(x + plain, pixels, width, count, y + blocked, 16);
        }
    }
}

void CAT(to16, ISA)(long batch, int channels, long pixels, const float* x, float* y, int nth) {
    reorder(0, batch, channels, pixels, x, y, nth);
}

void CAT(from16, ISA)(long batch, int channels, long pixels, const float* x, float* y, int nth) {
    reorder(1, batch, channels, pixels, x, y, nth);
}

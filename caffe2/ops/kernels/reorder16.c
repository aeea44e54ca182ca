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

/* One row of images with few channels, bordered: what lies at the columns of each window, of all
 * channels, is added up. */
static void add_row(const conv16_t* c, const float* lines, long step, float* rows, long width) {
    const long lanes = (long)c->channels * c->kernel[1];
    for (long o = 0; o < c->out[1]; o++, lines += 16) {
        float* channel = rows + o * c->stride[1];
        for (long i = 0, tap = 0; i < lanes; i++) {
            channel[tap * c->dilation[1]] += lines[i / 16 * step + i % 16];
            if (++tap == c->kernel[1]) tap = 0, channel += width;
        }
    }
}

int CAT(add_lines, ISA)(const conv16_t* c, const float* lines, float* x, int nth) {
    const long blocks = BLOCKS((long)c->channels * c->kernel[1]), height = c->size[0];
    const long step = height * c->out[1] * 16, left = c->pad[1];
    const long reach = (c->out[1] - 1l) * c->stride[1] + (c->kernel[1] - 1l) * c->dilation[1] + 1;
    const long width = MAX(reach, left + c->size[1]), all = c->channels * width;
    int failed = 0;
    nth = threads_for(4. * c->batch * blocks * step, nth);
#pragma omp parallel for num_threads(nth) if (nth > 1) schedule(static) reduction(| : failed)
    for (long i = 0; i < c->batch * height; i++) {
        const long n = i / height, y = i % height;
        float* rows = kernels_scratch(0, all * sizeof(float));
        if (!rows) {
            failed = 1;
            continue;
        }
        memset(rows, 0, all * sizeof(float));
        add_row(c, lines + n * blocks * step + y * c->out[1] * 16, step, rows, width);
        for (long k = 0; k < c->channels; k++)
            memcpy(x + ((n * c->channels + k) * height + y) * c->size[1], rows + k * width + left,
                   c->size[1] * sizeof(float));
    }
    return failed ? -1 : 0;
}

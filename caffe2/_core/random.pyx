"""Random numbers: one stream an operator."""
import itertools
import os

from cython.parallel cimport prange
from libc.math cimport M_PI, cosf, exp, log, log1pf, sinf, sqrt, sqrtf
from libc.stdint cimport int64_t, uint32_t, uint64_t

from caffe2._core.threads cimport num_threads

# Ziggurat of 256 layers of equal area under exp(-x^2 / 2): right edges and heights. Layer 0 holds the tail.
cdef double[257] EDGE
cdef double[257] HEIGHT
cdef double TAIL = 3.6541528853610088
cdef double AREA = 4.92867323399e-3


cdef int _build() except -1:
    cdef int i
    EDGE[0] = AREA / exp(-0.5 * TAIL * TAIL)
    EDGE[1] = TAIL
    for i in range(2, 256):
        EDGE[i] = sqrt(-2 * log(AREA / EDGE[i - 1] + exp(-0.5 * EDGE[i - 1] * EDGE[i - 1])))
    EDGE[256] = 0
    for i in range(257):
        HEIGHT[i] = exp(-0.5 * EDGE[i] * EDGE[i])
    return 0


_build()
_entropy = int.from_bytes(os.urandom(8), "little")
_unseeded = itertools.count()


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    # the hash of SplitMix64
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t draw(uint64_t key, uint64_t i) noexcept nogil:
    return mix(key + i * <uint64_t>0x9E3779B97F4A7C15)


cdef inline double unit(uint64_t bits) noexcept nogil:
    # in (0, 1]
    return ((bits >> 11) + 1) * (1.0 / 9007199254740992.0)


cdef double ziggurat(uint64_t bits) noexcept nogil:
    """A standard normal number; where one draw does not do, it goes on hashing that draw."""
    cdef int i = bits & 255
    cdef double sign = 1.0 - <double>((bits >> 7) & 2), x = unit(bits) * EDGE[i]
    while x >= EDGE[i + 1]:
        bits = draw(bits, 1)
        if i == 0:
            x = -log(unit(bits)) / TAIL
            bits = draw(bits, 1)
            if -2 * log(unit(bits)) > x * x:
                return sign * (TAIL + x)
            x = EDGE[0]
            continue
        if HEIGHT[i] + unit(bits) * (HEIGHT[i + 1] - HEIGHT[i]) < exp(-0.5 * x * x):
            break
        bits = draw(bits, 1)
        i = bits & 255
        x = unit(bits) * EDGE[i]
    return sign * x


cdef class Random:
    """A stream of random numbers.

    Parameters
    ----------
    option : DeviceOption
        Whose ``random_seed`` starts the stream; without one, every stream is another.
    """

    def __cinit__(self, option):
        cdef int i
        self.seeded = option.HasField("random_seed")
        if self.seeded:
            self.state[0] = option.random_seed
            for i in range(1, 624):
                self.state[i] = 1812433253 * (self.state[i - 1] ^ (self.state[i - 1] >> 30)) + i
            self.at = 624
        else:
            self.key = mix(_entropy + next(_unseeded) & 0xFFFFFFFFFFFFFFFF)

    cdef void twist(self) noexcept nogil:
        cdef int i, j
        cdef uint32_t y
        for i in range(624):
            j = i + 1 if i < 623 else 0
            y = (self.state[i] & <uint32_t>0x80000000) | (self.state[j] & <uint32_t>0x7FFFFFFF)
            j = i + 397 if i < 227 else i - 227
            self.state[i] = self.state[j] ^ (y >> 1) ^ ((0 - (y & 1)) & <uint32_t>0x9908B0DF)
        self.at = 0

    cdef uint32_t bits32(self) noexcept nogil:
        cdef uint32_t y
        if not self.seeded:
            return <uint32_t>self.bits64()
        if self.at == 624:
            self.twist()
        y = self.state[self.at]
        self.at += 1
        y ^= y >> 11
        y ^= (y << 7) & <uint32_t>0x9D2C5680
        y ^= (y << 15) & <uint32_t>0xEFC60000
        return y ^ (y >> 18)

    cdef uint64_t bits64(self) noexcept nogil:
        cdef uint64_t high
        if self.seeded:
            high = self.bits32()
            return high << 32 | self.bits32()
        self.drawn += 1
        return draw(self.key, self.drawn)

    cdef double uniform(self) noexcept nogil:
        return (self.bits64() & <uint64_t>0x1FFFFFFFFFFFFF) * (1.0 / 9007199254740992.0)

    cdef float uniform_float(self) noexcept nogil:
        return <float>(self.bits32() & 0xFFFFFF) * <float>(1.0 / 16777216.0)

    cdef double normal(self) noexcept nogil:
        cdef float angle, r
        if not self.seeded:
            return ziggurat(self.bits64())
        if self.has_spare:
            self.has_spare = False
            return self.spare
        angle = <float>(2 * M_PI) * self.uniform_float()
        r = sqrtf(-2 * log1pf(-self.uniform_float()))
        self.has_spare = True
        self.spare = r * sinf(angle)
        return r * cosf(angle)

    cdef uint64_t below(self, uint64_t n) noexcept nogil:
        cdef uint64_t bits, least
        if self.seeded:
            bits = self.bits32() if 0 < n < <uint64_t>1 << 32 else self.bits64()
            return bits % n if n else bits
        bits = self.bits64()
        if n & (n - 1) == 0:        # powers of two, and 0
            return bits & (n - 1)
        least = (0 - n) % n         # below it, some remainders would come once more often
        while bits < least:
            bits = self.bits64()
        return bits % n

    cdef void fill_uniform(self, float* y, int64_t n, float low, float high) noexcept nogil:
        cdef int64_t pairs = (n + 1) // 2, i, chunk
        cdef float scale = high - low
        cdef int threads, t
        if self.seeded:
            for i in range(n):
                y[i] = self.uniform_float() * scale + low
            return
        threads = num_threads(2 * n)
        if threads == 1:
            uniform_stretch(self.key, self.drawn, y, n, 0, pairs, low, scale)
        else:
            chunk = (pairs + threads - 1) // threads
            for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                uniform_stretch(self.key, self.drawn, y, n, min(pairs, t * chunk), min(pairs, (t + 1) * chunk), low,
                                scale)
        self.drawn += pairs

    cdef void fill_normal(self, float* y, int64_t n, float mean, float std) noexcept nogil:
        cdef int64_t i, chunk
        cdef int threads, t
        if self.seeded:
            for i in range(n):
                y[i] = <float>(self.normal() * std + mean)
            return
        threads = num_threads(8 * n)
        if threads == 1:
            normal_stretch(self.key, self.drawn, y, 0, n, mean, std)
        else:
            chunk = (n + threads - 1) // threads
            for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                normal_stretch(self.key, self.drawn, y, min(n, t * chunk), min(n, (t + 1) * chunk), mean, std)
        self.drawn += n


cdef void uniform_stretch(uint64_t key, uint64_t drawn, float* y, int64_t n, int64_t begin, int64_t end, float low,
                          float scale) noexcept nogil:
    # a draw makes two numbers
    cdef int64_t i
    cdef uint64_t bits
    scale *= <float>(1.0 / 16777216.0)
    for i in range(begin, end):
        bits = draw(key, drawn + i + 1)
        y[2 * i] = low + scale * <float>(<int>(bits >> 40))
        if 2 * i + 1 < n:
            y[2 * i + 1] = low + scale * <float>(<int>(bits & 0xFFFFFF))


cdef void normal_stretch(uint64_t key, uint64_t drawn, float* y, int64_t begin, int64_t end, float mean,
                         float std) noexcept nogil:
    cdef int64_t i
    for i in range(begin, end):
        y[i] = mean + std * <float>ziggurat(draw(key, drawn + i + 1))

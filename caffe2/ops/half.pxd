"""float16 as bits, to and from float; rounds to nearest, ties to even."""
from libc.stdint cimport int32_t, uint16_t, uint32_t
from libc.string cimport memcpy

cdef inline float half_to_float(uint16_t h) noexcept nogil:
    cdef uint32_t sign = <uint32_t>(h & 0x8000) << 16
    cdef uint32_t exponent = (h >> 10) & 31
    cdef uint32_t bits = h & 0x3FF
    cdef float value
    if exponent == 0:                                       # zero, subnormal
        value = <float>(<int32_t>bits) * <float>5.9604644775390625e-8
        return -value if sign else value
    if exponent == 31:
        bits = sign | 0x7F800000 | bits << 13
    else:
        bits = sign | (exponent + 112) << 23 | bits << 13
    memcpy(&value, &bits, 4)
    return value

cdef inline uint16_t float_to_half(float value) noexcept nogil:
    cdef uint32_t bits, sign, shift
    memcpy(&bits, &value, 4)
    sign = (bits >> 16) & 0x8000
    bits &= 0x7FFFFFFF
    if bits > 0x7F800000:                                   # NaN
        return <uint16_t>(sign | 0x7E00)
    if bits >= 0x477FF000:                                  # rounds to infinity
        return <uint16_t>(sign | 0x7C00)
    if bits < 0x38800000:                                   # zero, subnormal
        if bits < 0x33000000:
            return <uint16_t>sign
        shift = 126 - (bits >> 23)
        bits = (bits & 0x7FFFFF) | 0x800000
        return <uint16_t>(sign | (bits + (<uint32_t>1 << (shift - 1)) - 1 + ((bits >> shift) & 1)) >> shift)
    return <uint16_t>(sign | (bits - 0x38000000 + 0xFFF + ((bits >> 13) & 1)) >> 13)

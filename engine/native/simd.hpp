// Sixteen floats at a time, on AVX-512 as one register and on AVX2 as two.
//
// Kernels are written once on `Floats` and compiled once for each instruction set (see build.py). Every operation here
// rounds in the same way on both, so both give the same bits. Nothing may be left to the compiler's contraction of
// products and sums: what is fused is written as `fma`.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

// Before a loop over registers: without it, compilers keep arrays of registers in memory.
#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

namespace drafthouse::SIMD_NAMESPACE {

// Has a sum here and now: compilers join sums of integers as they like, and then keep all products in memory until the end.
template <class Register>
inline void settle(Register& value) {
  asm("" : "+x"(value));
}

constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct Floats {
  __m512 v;
};

inline Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Floats load(const uint16_t* half) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)))};
}
inline void store(float* to, Floats a) { _mm512_storeu_ps(to, a.v); }
inline void store(uint16_t* half, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(half), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Floats all(float value) { return {_mm512_set1_ps(value)}; }
inline Floats zero() { return {_mm512_setzero_ps()}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats greater(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats nearest(Floats a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integers n in -126..0.
inline Floats times_power_of_two(Floats a, Floats n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// Lanes from..to - 1 of a, zero elsewhere.
inline Floats within(Floats a, int from, int to) {
  uint32_t below = to >= kLanes ? 0xffffu : to <= 0 ? 0u : (1u << to) - 1;
  uint32_t skipped = from <= 0 ? 0u : from >= kLanes ? 0xffffu : (1u << from) - 1;
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>(below & ~skipped), a.v)};
}
// Lanes from..to - 1 of a, `other` elsewhere.
inline Floats within_or(Floats a, int from, int to, Floats other) {
  uint32_t below = to >= kLanes ? 0xffffu : to <= 0 ? 0u : (1u << to) - 1;
  uint32_t skipped = from <= 0 ? 0u : from >= kLanes ? 0xffffu : (1u << from) - 1;
  return {_mm512_mask_mov_ps(other.v, static_cast<__mmask16>(below & ~skipped), a.v)};
}

// Sixteen 32-bit integers, or 32 of 16 bits in pairs. (GCC leaves arrays of structures around a __m512i in memory.)
struct Integers {
  using Type = int32_t __attribute__((vector_size(64)));
  Type v;
  Integers() = default;
  Integers(__m512i values) : v(reinterpret_cast<Type>(values)) {}
  __m512i raw() const { return reinterpret_cast<__m512i>(v); }
};

inline Integers load(const int32_t* from) { return _mm512_loadu_si512(from); }
inline void store(int32_t* to, Integers a) { _mm512_storeu_si512(to, a.raw()); }
inline Integers load_bytes(const void* from) { return _mm512_loadu_si512(from); }
inline Integers all(int32_t value) { return _mm512_set1_epi32(value); }
// sums[i] + the four products of the bytes of `plain` (unsigned) and `with_sign` (signed) in lane i.
inline Integers add_products(Integers sums, Integers plain, Integers with_sign) {
  return _mm512_dpbusd_epi32(sums.raw(), plain.raw(), with_sign.raw());
}
// Bytes of lanes, and fours of bytes that all lanes share, as `add_shared` takes them. On AVX2 bytes of even and of odd
// places are apart in 16 bits, since the products of two bytes need more than 16 there.
struct Unsigned {
  Integers bytes;
};
struct Signed {
  Integers bytes;
};
inline Unsigned as_unsigned(Integers bytes) { return {bytes}; }
inline Signed as_signed(Integers bytes) { return {bytes}; }
constexpr int kSharedWords = 1;  // for four bytes
// Sixteen bytes.
inline void store_shared(int32_t* to, const int8_t* bytes) { std::memcpy(to, bytes, 16); }
inline void store_shared(int32_t* to, const uint8_t* bytes) { std::memcpy(to, bytes, 16); }
// sums[i] + the four products of lane i and shared bytes of the other kind.
inline Integers add_shared(Integers sums, Unsigned lanes, const int32_t* shared) {
  return add_products(sums, lanes.bytes, all(*shared));
}
inline Integers add_shared(Integers sums, Signed lanes, const int32_t* shared) {
  return add_products(sums, all(*shared), lanes.bytes);
}

// Sums of at most 16 products of each byte of two lanes, where those without sign are 15 at most.
using SmallSums = Integers;
inline SmallSums no_sums() { return all(0); }
inline SmallSums add_small(SmallSums sums, Integers plain, Integers with_sign) {
  return add_products(sums, plain, with_sign);
}
inline Integers widened(SmallSums sums) { return sums; }
inline Integers operator+(Integers a, Integers b) { return _mm512_add_epi32(a.raw(), b.raw()); }
// The low and the high four bits of each byte.
inline Integers low_halves(Integers a) { return _mm512_and_si512(a.raw(), _mm512_set1_epi8(15)); }
inline Integers high_halves(Integers a) {
  return _mm512_and_si512(_mm512_srli_epi16(a.raw(), 4), _mm512_set1_epi8(15));
}
inline Integers rounded(Floats a) { return _mm512_cvtps_epi32(a.v); }
inline int total(Integers a) { return _mm512_reduce_add_epi32(a.raw()); }
inline Floats floats(Integers a) { return {_mm512_cvtepi32_ps(a.raw())}; }
// The low byte of each lane.
inline void store_bytes(void* to, Integers a) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a.raw()));
}

#else

struct Floats {
  __m256 low, high;
};

inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline Floats load(const uint16_t* half) {
  auto eight = [](const uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  };
  return {eight(half), eight(half + 8)};
}
inline void store(float* to, Floats a) {
  _mm256_storeu_ps(to, a.low);
  _mm256_storeu_ps(to + 8, a.high);
}
inline void store(uint16_t* half, Floats a) {
  auto eight = [](uint16_t* to, __m256 values) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  };
  eight(half, a.low);
  eight(half + 8, a.high);
}
inline Floats all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats greater(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats nearest(Floats a) {
  constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, how), _mm256_round_ps(a.high, how)};
}
inline Floats times_power_of_two(Floats a, Floats n) {
  auto eight = [](__m256 values, __m256 powers) {
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(powers), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(values, _mm256_castsi256_ps(exponent));
  };
  return {eight(a.low, n.low), eight(a.high, n.high)};
}
inline Floats within_or(Floats a, int from, int to, Floats other) {
  auto eight = [=](__m256 inside, __m256 outside, int first) {
    __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    __m256i kept = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane),
                                       _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane));
    return _mm256_blendv_ps(outside, inside, _mm256_castsi256_ps(kept));
  };
  return {eight(a.low, other.low, 0), eight(a.high, other.high, 8)};
}
inline Floats within(Floats a, int from, int to) { return within_or(a, from, to, zero()); }

struct Integers {
  __m256i low, high;
};

inline Integers load(const int32_t* from) {
  auto* at = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline void store(int32_t* to, Integers a) {
  auto* at = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(at, a.low);
  _mm256_storeu_si256(at + 1, a.high);
}
inline Integers load_bytes(const void* from) { return load(static_cast<const int32_t*>(from)); }
inline Integers all(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline Integers add_products(Integers sums, Integers plain, Integers with_sign) {
  auto eight = [](__m256i sum, __m256i a, __m256i b) {  // in 16 bits, which the products of bytes need
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0xff)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  };
  return {eight(sums.low, plain.low, with_sign.low), eight(sums.high, plain.high, with_sign.high)};
}
struct Split {
  Integers even, odd;
};
inline Split as_unsigned(Integers bytes) {
  auto even = [](__m256i a) { return _mm256_and_si256(a, _mm256_set1_epi16(0xff)); };
  auto odd = [](__m256i a) { return _mm256_srli_epi16(a, 8); };
  return {{even(bytes.low), even(bytes.high)}, {odd(bytes.low), odd(bytes.high)}};
}
inline Split as_signed(Integers bytes) {
  auto even = [](__m256i a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); };
  auto odd = [](__m256i a) { return _mm256_srai_epi16(a, 8); };
  return {{even(bytes.low), even(bytes.high)}, {odd(bytes.low), odd(bytes.high)}};
}
constexpr int kSharedWords = 2;
inline void store_split(int32_t* to, __m128i even, __m128i odd) {
  auto* at = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(at, _mm_unpacklo_epi32(even, odd));
  _mm_storeu_si128(at + 1, _mm_unpackhi_epi32(even, odd));
}
inline void store_shared(int32_t* to, const int8_t* bytes) {
  __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  store_split(to, _mm_srai_epi16(_mm_slli_epi16(sixteen, 8), 8), _mm_srai_epi16(sixteen, 8));
}
inline void store_shared(int32_t* to, const uint8_t* bytes) {
  __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  store_split(to, _mm_and_si128(sixteen, _mm_set1_epi16(0xff)), _mm_srli_epi16(sixteen, 8));
}
inline Integers add_shared(Integers sums, const Split& lanes, const int32_t* shared) {
  __m256i even = _mm256_set1_epi32(shared[0]), odd = _mm256_set1_epi32(shared[1]);
  auto eight = [=](__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_add_epi32(sum, _mm256_madd_epi16(a, even)), _mm256_madd_epi16(b, odd));
  };
  Integers found{eight(sums.low, lanes.even.low, lanes.odd.low), eight(sums.high, lanes.even.high, lanes.odd.high)};
  settle(found.low);
  settle(found.high);
  return found;
}

struct SmallSums {
  __m256i low, high;  // 16 bits each, for which 16 products of 15 and 127 are not too many
};
inline SmallSums no_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline SmallSums add_small(SmallSums sums, Integers plain, Integers with_sign) {
  sums = {_mm256_add_epi16(sums.low, _mm256_maddubs_epi16(plain.low, with_sign.low)),
          _mm256_add_epi16(sums.high, _mm256_maddubs_epi16(plain.high, with_sign.high))};
  settle(sums.low);
  settle(sums.high);
  return sums;
}
inline Integers widened(SmallSums sums) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(sums.low, one), _mm256_madd_epi16(sums.high, one)};
}
inline Integers operator+(Integers a, Integers b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline Integers low_halves(Integers a) {
  return {_mm256_and_si256(a.low, _mm256_set1_epi8(15)), _mm256_and_si256(a.high, _mm256_set1_epi8(15))};
}
inline Integers high_halves(Integers a) {
  auto eight = [](__m256i bytes) { return _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15)); };
  return {eight(a.low), eight(a.high)};
}
inline Integers rounded(Floats a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
inline int total(Integers a) {
  __m256i eight = _mm256_add_epi32(a.low, a.high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
inline Floats floats(Integers a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline void store_bytes(void* to, Integers a) {
  const __m256i low_bytes = _mm256_set1_epi64x(0x0c080400), lanes = _mm256_setr_epi32(0, 4, 1, 1, 1, 1, 1, 1);
  auto eight = [=](__m256i values) {
    return _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(values, low_bytes), lanes));
  };
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm_unpacklo_epi64(eight(a.low), eight(a.high)));
}

#endif

// Brings the cache line of an address nearer, for a read that is some hundred cycles away.
inline void prefetch(const std::byte* address) { _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0); }

// Lanes are joined in pairs of eight, four, two, one apart, on every instruction set.
template <class Join>
float joined(Floats a, const Join& join) {
#if defined(__AVX512F__)
  __m256 low = _mm512_castps512_ps256(a.v), high = _mm512_extractf32x8_ps(a.v, 1);
#else
  __m256 low = a.low, high = a.high;
#endif
  __m128 first = join(_mm256_castps256_ps128(low), _mm256_castps256_ps128(high));
  __m128 second = join(_mm256_extractf128_ps(low, 1), _mm256_extractf128_ps(high, 1));
  __m128 four = join(first, second);
  __m128 two = join(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(join(two, _mm_movehdup_ps(two)));
}

inline float sum(Floats a) {
  return joined(a, [](__m128 left, __m128 right) { return _mm_add_ps(left, right); });
}

inline float largest(Floats a) {
  return joined(a, [](__m128 left, __m128 right) { return _mm_max_ps(left, right); });
}

// e^x for x <= 0, to about one unit in the last place; exactly 1 for 0. Below -87 it stays e^-87: callers mask what does
// not count. NaN stays NaN, so that a model with broken weights shows it.
// Range reduction and the polynomial are those of Cephes' expf (S. Moshier).
inline Floats exponential(Floats x) {
  const Floats least = all(-87.0f);
  Floats bounded = greater(least, x);
  Floats n = nearest(bounded * all(1.44269504088896341f));
  Floats r = fma(n, all(-0.693359375f), bounded);
  r = fma(n, all(2.12194440e-4f), r);
  Floats p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, r * r, r + all(1.0f));
  return times_power_of_two(p, n);
}

}  // namespace drafthouse::SIMD_NAMESPACE

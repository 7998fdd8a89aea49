#define SIMD_NAMESPACE avx512
#include "kernel.inc"

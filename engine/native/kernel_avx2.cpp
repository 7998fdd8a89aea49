#define SIMD_NAMESPACE avx2
#include "kernel.inc"

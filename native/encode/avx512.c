/* avx512.c - the encoders for x86-64 with AVX-512. */
#define ENCODERS encoders_avx512
#include "encoders.h"

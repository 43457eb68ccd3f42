/* avx2.c - the encoders for x86-64 with AVX2. */
#define ENCODERS encoders_avx2
#include "encoders.h"

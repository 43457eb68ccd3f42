/* baseline.c - the encoders for every processor of the architecture. */
#define ENCODERS encoders_baseline
#include "encoders.h"

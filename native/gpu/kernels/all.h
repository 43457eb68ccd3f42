/* all.h - every kernel, for the three translations: emulate.cpp, kernels.cu, kernels.metal. */
#ifndef QWEN3_GPU_ALL_H
#define QWEN3_GPU_ALL_H

#include "attend.h"
#include "attend_prefill.h"
#include "embed.h"
#include "matmul.h"
#include "matvec.h"
#include "norm.h"
#include "probe.h"
#include "rope.h"
#include "route.h"
#include "topk.h"

#endif

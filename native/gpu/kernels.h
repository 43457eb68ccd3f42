/* kernels.h - the kernels by name: KERNELS(X) lists X(name, struct of arguments). */
#ifndef QWEN3_GPU_KERNELS_H
#define QWEN3_GPU_KERNELS_H

#include "../blocks.h"
#include "args.h"

/* The types of blocks.h, in capitals and as kernels are named. */
#define WEIGHT_TYPES(M, X)                                                              \
    M(X, F32, f32) M(X, F16, f16) M(X, BF16, bf16) M(X, Q8_0, q8_0) M(X, Q4_0, q4_0)    \
    M(X, Q4_1, q4_1) M(X, Q5_0, q5_0) M(X, Q5_1, q5_1) M(X, IQ4_NL, iq4_nl)             \
    M(X, Q2_K, q2_k) M(X, Q3_K, q3_k) M(X, Q4_K, q4_k) M(X, Q5_K, q5_k)                 \
    M(X, Q6_K, q6_k) M(X, IQ4_XS, iq4_xs)

/* Up to 1, 2, 4 and 8 columns. */
#define MATVECS(X, TYPE, type)        \
    X(matvec_##type##_1, matvec_args) \
    X(matvec_##type##_2, matvec_args) \
    X(matvec_##type##_4, matvec_args) \
    X(matvec_##type##_8, matvec_args)

#define GEMM(X, TYPE, type) X(gemm_##type, gemm_args)

#define KERNELS(X)                    \
    X(embed_rows, embed_args)         \
    X(rms_norm, norm_args)            \
    WEIGHT_TYPES(MATVECS, X)          \
    WEIGHT_TYPES(GEMM, X)             \
    X(add_experts, add_experts_args)  \
    X(rope, rope_args)                \
    X(attend_f16_4, attention_args)   \
    X(attend_f16_8, attention_args)   \
    X(attend_f16_16, attention_args)  \
    X(attend_q8_4, attention_args)    \
    X(attend_q8_8, attention_args)    \
    X(attend_q8_16, attention_args)   \
    X(attend_merge, attention_args)   \
    X(prefill_f16, attention_args)    \
    X(prefill_q8, attention_args)     \
    X(route_experts, route_args)      \
    X(group_entries, group_args)      \
    X(locate_experts, locate_args)    \
    X(top_parts, top_args)            \
    X(top_merge, top_args)            \
    X(penalize, penalize_args)        \
    X(probe_read, probe_read_args)    \
    X(probe_f16, probe_products_args) \
    X(probe_int8, probe_products_args)

typedef enum {
#define X(name, args) KERNEL_##name,
    KERNELS(X)
#undef X
    N_KERNELS
} kernel_id;

/* For weights of a type of blocks.h and so many columns: up to 8 at a time. */
static inline kernel_id matvec_kernel(uint32_t type, int n_columns) {
    int step = n_columns > 4 ? 3 : n_columns > 2 ? 2 : n_columns - 1;
    switch (type) {
#define X(_, TYPE, type) \
    case TYPE_##TYPE: return (kernel_id)(KERNEL_matvec_##type##_1 + step);
        WEIGHT_TYPES(X, )
#undef X
    default: return N_KERNELS; /* no such type */
    }
}

/* For many. */
static inline kernel_id gemm_kernel(uint32_t type) {
    switch (type) {
#define X(_, TYPE, type) \
    case TYPE_##TYPE: return KERNEL_gemm_##type;
        WEIGHT_TYPES(X, )
#undef X
    default: return N_KERNELS;
    }
}

#endif

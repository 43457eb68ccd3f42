/* kernels.cu - the kernels as CUDA has them. */
#include "dialect.h"

#include "kernels.h"
#include "kernels/all.h"

extern const void *const kernel_functions[N_KERNELS] = {
#define X(name, args) (const void *)name,
    KERNELS(X)
#undef X
};

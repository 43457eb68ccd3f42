/* kernels.metal - the kernels as Metal has them. */
#include "dialect.h"

#include "kernels/all.h"

/* What metal.m adds: copies in the order of the stream's kernels. A thread for each item. */
kernel void copy_bytes(device const uchar *from [[buffer(0)]], device uchar *to [[buffer(1)]],
                       constant uint &n [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < n) to[i] = from[i];
}

kernel void copy_vectors(device const uint4 *from [[buffer(0)]], device uint4 *to [[buffer(1)]],
                         constant uint &n [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < n) to[i] = from[i];
}

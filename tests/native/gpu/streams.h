/* streams.h - the emulated device with streams that run as late, or as early, as they may. */
#ifndef QWEN3_TEST_STREAMS_H
#define QWEN3_TEST_STREAMS_H

#include "gpu/emulated.h"

/* What is queued runs some time before a sync says that it has, in an order drawn from the seed of
 * those that the waits between streams allow: host memory that is changed too early, and a wait
 * that is missing, show; with an odd seed nothing runs before it must. What is downloaded is garbage
 * until then. All devices share the two streams. */
extern const gpu_api gpu_streamed;
void gpu_streamed_seed(uint64_t seed);

/* From now on the n-th allocation fails, 1 the next, and then all of them; 0: none. */
void gpu_streamed_fail(int n);
/* Whether memory can be pinned from now on; how many copies came from such memory. It must stay
 * pinned while one is queued. */
void gpu_streamed_pins(bool);
int gpu_streamed_pinned_copies(void);
/* The n-th copy from now on fails, 1 the next. */
void gpu_streamed_fail_copy(int n);

#endif

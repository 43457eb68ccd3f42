/* readers.h - threads that read pieces of files into memory, in the order they were asked; those
 * that may turn out to be useless only while nobody asks for others.
 *
 * Past the page cache (O_DIRECT) where the file system allows it: what is read is kept by the
 * reader, and a second copy of it would push out what the user's other programs need.
 */
#ifndef QWEN3_READERS_H
#define QWEN3_READERS_H

#include <stdatomic.h>

#include "qwen3.h"

/* Files are read in whole pages, which O_DIRECT asks for. */
enum { READ_PAGE = 4096 };

typedef enum { READ_IDLE, READ_PENDING, READ_DONE, READ_FAILED } read_state;

/* Bytes [offset, offset + size) of a file, which come to lie at to + offset % READ_PAGE. to is the
 * start of a page; the pages that the bytes touch are written, whole. */
typedef struct read_request {
    int file;
    uint64_t offset;
    size_t size;
    uint8_t *to;
    _Atomic(read_state) state;
    struct read_request *next; /* the queue's own */
} read_request;

typedef struct readers readers;

/* Called by a reader before a request is done, if not NULL; false: what was read is not valid,
 * which is a failure with the errno EILSEQ. */
typedef bool read_check(const void *arg, const read_request *);

/* n_threads >= 1 of them. Opens the files. */
readers *readers_new(const char *const *paths, int n_paths, int n_threads, read_check *,
                     const void *arg, qwen3_error *err);
/* Drops what is not begun yet. NULL is ignored. */
void readers_free(readers *);

/* Queues a request, which stays in place until it is done or has failed. idle: it is begun only
 * while no other waits. */
void readers_submit(readers *, read_request *, bool idle);
/* Takes all that are not begun yet back: they are READ_IDLE again. Nobody waits for them. */
void readers_recall(readers *);
/* Waits until it is done or has failed: true when done. False too when *cancel (NULL: never)
 * becomes true, at most 20 ms later. Any thread may wait. */
bool readers_wait(readers *, const read_request *, const atomic_bool *cancel);
/* QWEN3_OK, or what the first request that failed since the last call should tell its user. */
qwen3_status readers_status(readers *, qwen3_error *err);

/* Bytes that were asked for and read since the start. */
uint64_t readers_bytes(const readers *);
/* Whether they are read past the page cache. */
bool readers_direct(const readers *);

#endif

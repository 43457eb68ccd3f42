/* snapshot.h - a session put aside: in memory, to come back to it, and in a file, to go on later. */
#ifndef QWEN3_SNAPSHOT_H
#define QWEN3_SNAPSHOT_H

#include "qwen3.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- in memory ------------------------------------------------------------------ */

typedef struct qwen3_snapshot qwen3_snapshot;

/* Copies the tokens of the session, its logits, and keys and values from position start on (0 to
 * qwen3_session_len): memory for what is filled, not for the context. NULL and an error when start
 * is beyond the end and when memory is short. To be freed before the model is closed. */
qwen3_snapshot *qwen3_session_snapshot(const qwen3_session *, size_t start, qwen3_error *err);
void qwen3_snapshot_free(qwen3_snapshot *);
/* Makes the session, whose first `start` tokens must be those of the snapshot, what it was then:
 * it goes on with the same bits. It may be another session of the model with a kv cache of the same
 * type, of any size that the tokens fit. After an error it is unchanged, but a GPU that fails
 * leaves nothing but those `start` tokens. */
qwen3_status qwen3_session_restore(qwen3_session *, const qwen3_snapshot *, qwen3_error *err);
size_t qwen3_snapshot_start(const qwen3_snapshot *);
size_t qwen3_snapshot_len(const qwen3_snapshot *); /* tokens, those before start included */
const int32_t *qwen3_snapshot_ids(const qwen3_snapshot *);
size_t qwen3_snapshot_bytes(const qwen3_snapshot *); /* of memory that it takes */

/* ---- in a file ------------------------------------------------------------------ */

/* Writes tokens, keys, values and logits of the session to a file of mode 0600: first to
 * .NAME.part beside it, which gets the name when all of it is on the disk. A file of that name stays
 * until then, and after an error for good. */
qwen3_status qwen3_session_save(const qwen3_session *, const char *path, qwen3_error *err);
/* Makes the session what was saved, by a model of the same weights with a kv cache of the same type;
 * the sizes of the contexts may differ. It goes on with the same bits as the saved one would on this
 * machine's backend.
 * QWEN3_ERR_ARG: another model or type; QWEN3_ERR_CONTEXT: too many tokens; QWEN3_ERR_FORMAT,
 * QWEN3_ERR_UNSUPPORTED: damaged, or no such file; QWEN3_ERR_IO: not to be read. After an error the
 * session is unchanged, or empty where the damage lay behind the header. */
qwen3_status qwen3_session_load(qwen3_session *, const char *path, qwen3_error *err);

#ifdef __cplusplus
}
#endif
#endif

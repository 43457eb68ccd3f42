/* qwen3.h - the public interface of the qwen3 engine.
 *
 * A model is opened once and shared by its sessions; a session owns one token
 * sequence, its kv cache and the logits of its last position. The engine knows
 * token ids only: templates, thinking and text streaming live in front of it.
 *
 * No function exits, prints or aborts. A function that can fail takes a
 * qwen3_error, fills it with a status and a sentence that names what was wrong,
 * and returns NULL, a negative count or a non-zero status.
 *
 * What else a program may want of a model is in together.h, snapshot.h, grammar.h, probe.h,
 * importance.h, rows.h, larger.h and device.h.
 *
 * A model may be used from many threads; a session from one at a time, except
 * qwen3_session_cancel, which any thread or signal handler may call.
 */
#ifndef QWEN3_H
#define QWEN3_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    QWEN3_OK = 0,
    QWEN3_ERR_ARG,         /* a caller's argument is out of range */
    QWEN3_ERR_IO,          /* the operating system refused a file */
    QWEN3_ERR_FORMAT,      /* a file contradicts itself or its format */
    QWEN3_ERR_UNSUPPORTED, /* well formed, but not something this engine runs */
    QWEN3_ERR_MEMORY,      /* an allocation failed */
    QWEN3_ERR_CONTEXT,     /* more tokens than the context holds */
    QWEN3_ERR_CANCELLED,   /* qwen3_session_cancel was called */
} qwen3_status;

typedef struct {
    qwen3_status status;
    char text[512]; /* UTF-8, terminated; may quote bytes of the file */
} qwen3_error;

typedef struct qwen3_file qwen3_file;
typedef struct qwen3_tokenizer qwen3_tokenizer;
typedef struct qwen3_model qwen3_model;
typedef struct qwen3_session qwen3_session;

/* ---- files: GGUF v2 and v3, memory-mapped, bounds-checked when opened ----
 * A mapped file must not shrink while it is open (the system would end the process
 * with SIGBUS): replace a model by renaming another over it. */

typedef struct {
    const char *data; /* not terminated */
    uint64_t len;
} qwen3_str;

enum { /* metadata value types, as GGUF numbers them */
    QWEN3_U8, QWEN3_I8, QWEN3_U16, QWEN3_I16, QWEN3_U32, QWEN3_I32, QWEN3_F32,
    QWEN3_BOOL, QWEN3_STRING, QWEN3_ARRAY, QWEN3_U64, QWEN3_I64, QWEN3_F64,
};

typedef struct {
    qwen3_str key;
    uint32_t type;       /* QWEN3_U8 ... QWEN3_F64 */
    uint32_t item_type;  /* of an array's items, else equal to type */
    uint64_t count;      /* items of an array, else 1 */
    const uint8_t *data; /* little-endian, unaligned, as in the file */
} qwen3_kv;

typedef struct {
    qwen3_str name;
    uint32_t type;       /* ggml type number */
    uint32_t n_dims;
    uint64_t shape[4];   /* fastest dimension first, 1 beyond n_dims */
    uint64_t bytes;
    uint64_t offset;     /* of the data, from the start of the file */
    const uint8_t *data; /* in the mapping */
    uint32_t shard;      /* the file that holds it, 0 for the first */
} qwen3_tensor;

/* A split model is opened by its first shard, NAME-00001-of-00003.gguf, beside the others. */
qwen3_file *qwen3_file_open(const char *path, qwen3_error *err);
/* Reads a GGUF image in memory, which must outlive the file. */
qwen3_file *qwen3_file_from_memory(const void *data, size_t len, qwen3_error *err);
void qwen3_file_close(qwen3_file *);
uint32_t qwen3_file_version(const qwen3_file *);
size_t qwen3_file_n_kv(const qwen3_file *);
const qwen3_kv *qwen3_file_kv(const qwen3_file *, size_t index);
size_t qwen3_file_n_tensors(const qwen3_file *);
const qwen3_tensor *qwen3_file_tensor(const qwen3_file *, size_t index);
/* The string at *cursor of a string (array) value; moves the cursor past it. */
qwen3_str qwen3_next_string(const uint8_t **cursor);
/* "Q4_K" for 12 and so on; NULL for a type this engine does not know. */
const char *qwen3_type_name(uint32_t type);

/* ---- tokenizer: byte-level BPE of the Qwen family ------------------------ */

/* Copies what it needs: the file may be closed before the tokenizer. */
qwen3_tokenizer *qwen3_tokenizer_new(const qwen3_file *, qwen3_error *err);
void qwen3_tokenizer_free(qwen3_tokenizer *);
size_t qwen3_tokenizer_n_tokens(const qwen3_tokenizer *);
/* Encodes len bytes of text and hands the ids to *ids (free with qwen3_free).
 * parse_added: spelled-out added tokens such as <|im_end|> become their ids;
 * otherwise they are plain text. Invalid UTF-8 reads as U+FFFD.
 * Returns the count, or -1. O(len log len) whatever the text. */
int64_t qwen3_encode(const qwen3_tokenizer *, const char *text, size_t len, bool parse_added,
                     int32_t **ids, qwen3_error *err);
/* The bytes a token stands for (possibly a part of a character). An id without
 * text, padding included, gives an empty string. */
qwen3_str qwen3_token_bytes(const qwen3_tokenizer *, int32_t id);
/* 0 ordinary, 1 added (tool_call, think ...), 2 added and control (im_end ...). */
int qwen3_token_kind(const qwen3_tokenizer *, int32_t id);
void qwen3_free(void *);

/* ---- models -------------------------------------------------------------- */

typedef enum { QWEN3_KV_F16, QWEN3_KV_F32, QWEN3_KV_Q8 } qwen3_kv_type;

typedef struct {
    char arch[16]; /* "qwen3" or "qwen3moe" */
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    int32_t n_experts, n_experts_used, n_ff_expert; /* 0 in a dense model */
    float rope_theta, rms_eps;
    float yarn_factor; /* 0: no rope scaling */
    int32_t yarn_original_ctx;
    bool tied_embedding;
    bool norm_topk; /* renormalize the weights of the chosen experts */
    qwen3_kv_type default_kv; /* F16; F32 for F32 weights, whose use is to be a reference */
} qwen3_config;

/* Maps the file, checks every tensor against the metadata and every weight for NaN and infinity
 * (experts only if the file fits into half of the memory). n_threads 0: one per
 * physical (performance) core, within the CPU quota of a container. expert_bytes 0: experts are
 * used in the mapping; else so many bytes of memory hold those of late use, the others are read
 * from the file when they are needed, and what every token needs is held in memory beside them.
 * QWEN3_ERR_ARG names the least amount. The variable QWEN3_ISA names the backend to use. A fork
 * has to open the model anew. */
qwen3_model *qwen3_model_open(const char *path, int n_threads, uint64_t expert_bytes,
                              qwen3_error *err);
/* As above, over a file that the model takes and closes, also on failure. */
qwen3_model *qwen3_model_from_file(qwen3_file *, int n_threads, uint64_t expert_bytes,
                                   qwen3_error *err);
void qwen3_model_close(qwen3_model *);
const qwen3_config *qwen3_model_config(const qwen3_model *);
const qwen3_file *qwen3_model_file(const qwen3_model *);
int qwen3_model_n_threads(const qwen3_model *);
const char *qwen3_model_isa(const qwen3_model *);
/* The index-th backend that can run on this machine, NULL after the last. */
const char *qwen3_isa(size_t index);

/* ---- sessions ------------------------------------------------------------ */

typedef struct {
    float temperature; /* 0: greedy */
    int32_t top_k;     /* 0: off */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    float presence_penalty;   /* 0: off; over generated tokens */
    float repetition_penalty; /* 1: off; over all tokens of the session */
    uint64_t seed;
} qwen3_sampling;

/* n_ctx: 1 to 2^24. QWEN3_KV_Q8 (8 bits and an f16 scale per 32) is refused for heads that
 * are not whole blocks of 32. A session is freed before its model is closed. */
qwen3_session *qwen3_session_new(qwen3_model *, int32_t n_ctx, qwen3_kv_type, qwen3_error *err);
void qwen3_session_free(qwen3_session *);
/* Makes ids[0..n) the session's tokens, computing only what its kv cache does
 * not hold already, and leaves the logits of position n-1 (none when n is 0,
 * which empties the session). Returns how many
 * tokens were reused, or -1: on a context overflow nothing has changed; when
 * cancelled the tokens computed so far are kept. */
int64_t qwen3_sync(qwen3_session *, const int32_t *ids, size_t n, qwen3_error *err);
/* Appends ids[0..n) (n >= 1): the step of decoding. Fails as qwen3_sync does. */
qwen3_status qwen3_extend(qwen3_session *, const int32_t *ids, size_t n, qwen3_error *err);
/* As qwen3_extend, and the logits of every one of the n tokens go to logits[n][n_vocab]:
 * 600 KB a token of Qwen3, so take them in parts. The same bits as from token after token. */
qwen3_status qwen3_extend_logits(qwen3_session *, const int32_t *ids, size_t n, float *logits,
                                 qwen3_error *err);
size_t qwen3_session_len(const qwen3_session *);
size_t qwen3_session_n_ctx(const qwen3_session *);
size_t qwen3_session_kv_bytes(const qwen3_session *); /* of a cache that is full */
const int32_t *qwen3_session_ids(const qwen3_session *);
/* float[n_vocab] of the last position; NULL for an empty session and after a
 * computation that did not finish. */
const float *qwen3_session_logits(const qwen3_session *);
/* Draws the next token from the logits; tokens from index generated_from on
 * count as generated. The draw depends on the seed and the position alone, so
 * a rewound session repeats itself. Returns -1 and an error without logits, for
 * logits that are not finite and for settings out of range. */
int32_t qwen3_sample(qwen3_session *, const qwen3_sampling *, size_t generated_from,
                     qwen3_error *err);
/* Makes the running qwen3_sync or qwen3_extend return early, or else the next one. */
void qwen3_session_cancel(qwen3_session *);

#ifdef __cplusplus
}
#endif
#endif

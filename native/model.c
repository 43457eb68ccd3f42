/* model.c - from a GGUF file to a validated model.
 *
 * The configuration is read from the metadata, then every tensor is looked up by
 * name and its shape and type are held against the configuration. After open
 * succeeds, nothing in the forward pass needs a check.
 */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "cpu/machine.h"
#include "error.h"
#include "gguf.h"

/* ---- metadata ------------------------------------------------------------- */

typedef struct {
    const qwen3_file *file;
    const char *arch;
    qwen3_error *err;
    bool failed;
} reader;

static const qwen3_kv *find(const reader *r, const char *key, char *name, size_t size) {
    snprintf(name, size, "%s.%s", r->arch, key);
    return gguf_find(r->file, name);
}

/* An integer in [least, most]; absent is an error unless there is a fallback (>= 0). */
static int32_t read_int(reader *r, const char *key, int64_t least, int64_t most,
                        int64_t fallback) {
    char name[96];
    uint64_t value;
    if (r->failed) return 0;
    const qwen3_kv *kv = find(r, key, name, sizeof name);
    if (!kv && fallback >= 0) return (int32_t)fallback;
    if (!kv)
        fail(r->err, QWEN3_ERR_FORMAT, "metadata '%s' is missing", name);
    else if (!kv_to_u64(kv, &value))
        fail(r->err, QWEN3_ERR_FORMAT, "metadata '%s' is not one whole number", name);
    else if (value < (uint64_t)least || value > (uint64_t)most)
        fail(r->err, QWEN3_ERR_FORMAT, "metadata '%s' is %llu, outside %lld to %lld", name,
             (unsigned long long)value, (long long)least, (long long)most);
    else
        return (int32_t)value;
    r->failed = true;
    return 0;
}

/* A number in (above, most]; a fallback of NaN makes it required. */
static float read_float(reader *r, const char *key, double above, double most, double fallback) {
    char name[96];
    double value;
    if (r->failed) return 0;
    const qwen3_kv *kv = find(r, key, name, sizeof name);
    if (!kv && !isnan(fallback)) return (float)fallback;
    if (!kv)
        fail(r->err, QWEN3_ERR_FORMAT, "metadata '%s' is missing", name);
    else if (!kv_to_f64(kv, &value))
        fail(r->err, QWEN3_ERR_FORMAT, "metadata '%s' is not a number", name);
    else if (!(value > above && value <= most))
        fail(r->err, QWEN3_ERR_FORMAT, "metadata '%s' is %g, outside %g to %g", name, value, above,
             most);
    else
        return (float)value;
    r->failed = true;
    return 0;
}

static void read_rope_scaling(reader *r, qwen3_config *c) {
    char name[96];
    qwen3_str type = {"", 0};
    const qwen3_kv *kv = find(r, "rope.scaling.type", name, sizeof name);
    if (r->failed || !kv) return;
    if (!kv_to_str(kv, &type) || (!str_equals(type, "none") && !str_equals(type, "yarn"))) {
        fail(r->err, QWEN3_ERR_UNSUPPORTED, "metadata '%s' is '%.*s': this program knows none and "
             "yarn", name, STR_ARG(type));
        r->failed = true;
    } else if (str_equals(type, "yarn")) {
        c->yarn_factor = read_float(r, "rope.scaling.factor", 0, 1e4, (double)NAN);
        c->yarn_original_ctx = read_int(r, "rope.scaling.original_context_length", 1, 1 << 30, -1);
    }
}

static qwen3_status read_config(const qwen3_file *f, qwen3_config *c, qwen3_error *err) {
    qwen3_str arch = {"", 0};
    const qwen3_kv *kv = gguf_find(f, "general.architecture");
    if (!kv || !kv_to_str(kv, &arch))
        return fail(err, QWEN3_ERR_FORMAT, "metadata 'general.architecture' is missing");
    bool moe = str_equals(arch, "qwen3moe");
    if (!moe && !str_equals(arch, "qwen3"))
        return fail(err, QWEN3_ERR_UNSUPPORTED,
                    "the model's architecture is '%.*s': this program runs qwen3 and qwen3moe",
                    STR_ARG(arch));
    strcpy(c->arch, moe ? "qwen3moe" : "qwen3");
    reader r = {f, c->arch, err, false};
    c->n_layers = read_int(&r, "block_count", 1, 4096, -1);
    c->n_embd = read_int(&r, "embedding_length", 1, 1 << 20, -1);
    c->n_heads = read_int(&r, "attention.head_count", 1, 4096, -1);
    c->n_kv_heads = read_int(&r, "attention.head_count_kv", 1, 4096, c->n_heads);
    c->n_ctx_train = read_int(&r, "context_length", 1, 1 << 30, -1);
    c->head_dim = read_int(&r, "attention.key_length", 2, 4096,
                           c->n_heads ? c->n_embd / c->n_heads : -1);
    int32_t value_length = read_int(&r, "attention.value_length", 2, 4096, c->head_dim);
    c->rms_eps = read_float(&r, "attention.layer_norm_rms_epsilon", 0, 1, (double)NAN);
    c->rope_theta = read_float(&r, "rope.freq_base", 0, 1e12, 1e6);
    c->n_ff = read_int(&r, "feed_forward_length", 1, 1 << 24, moe ? 1 : -1);
    c->norm_topk = true;
    if (moe) {
        char name[96];
        c->n_experts = read_int(&r, "expert_count", 1, 4096, -1);
        c->n_experts_used = read_int(&r, "expert_used_count", 1, r.failed ? 1 : c->n_experts, -1);
        c->n_ff_expert = read_int(&r, "expert_feed_forward_length", 1, 1 << 24, -1);
        kv = find(&r, "expert_weights_norm", name, sizeof name);
        if (!r.failed && kv && !kv_to_bool(kv, &c->norm_topk))
            return fail(err, QWEN3_ERR_FORMAT, "metadata '%s' is not true or false", name);
    }
    read_rope_scaling(&r, c);
    if (r.failed) return err ? err->status : QWEN3_ERR_FORMAT;
    if (c->n_heads % c->n_kv_heads)
        return fail(err, QWEN3_ERR_FORMAT,
                    "%d attention heads cannot share %d key/value heads evenly", c->n_heads,
                    c->n_kv_heads);
    if (c->head_dim % 2 || c->head_dim < 2 || c->head_dim > 4096 || value_length != c->head_dim)
        return fail(err, QWEN3_ERR_UNSUPPORTED,
                    "key heads of %d and value heads of %d: they must be equal, even and at most 4096",
                    c->head_dim, value_length);
    return QWEN3_OK;
}

/* ---- tensors -------------------------------------------------------------- */

typedef struct {
    qwen3_model *model;
    qwen3_error *err;
    float *next_norm;
    bool failed;
} binder;

static const char *known_elsewhere(uint32_t type) {
    static const struct { uint32_t type; const char *name; } names[] = {
        {9, "Q8_1"}, {15, "Q8_K"}, {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
        {19, "IQ1_S"}, {21, "IQ3_S"}, {22, "IQ2_S"}, {24, "I8"}, {25, "I16"}, {26, "I32"},
        {27, "I64"}, {28, "F64"}, {29, "IQ1_M"}, {34, "TQ1_0"}, {35, "TQ2_0"}, {39, "MXFP4"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].type == type) return names[i].name;
    return "an unknown type";
}

/* The tensor "blk.<layer>.<name>.weight" (layer < 0: "<name>.weight"), its shape as
 * expected (0 beyond n_dims); NULL and an error otherwise. */
static const qwen3_tensor *expect(binder *b, int layer, const char *name, const int64_t want[3]) {
    char full[96];
    if (layer < 0)
        snprintf(full, sizeof full, "%s.weight", name);
    else
        snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    const qwen3_tensor *t = gguf_find_tensor(b->model->file, full);
    if (b->failed) return NULL;
    b->failed = true;
    if (!t) {
        fail(b->err, QWEN3_ERR_FORMAT, "tensor '%s' is missing", full);
        return NULL;
    }
    if (!weight_type_of(t->type)) {
        fail(b->err, QWEN3_ERR_UNSUPPORTED,
             "tensor '%s' has type %u (%s), which this program does not read", full, t->type,
             known_elsewhere(t->type));
        return NULL;
    }
    for (int d = 0; d < 4; d++) {
        uint64_t size = d < 3 && want[d] ? (uint64_t)want[d] : 1;
        if (t->shape[d] == size) continue;
        fail(b->err, QWEN3_ERR_FORMAT,
             "tensor '%s' has the shape %llu x %llu x %llu x %llu; the metadata asks for "
             "%lld x %lld x %lld x 1",
             full, (unsigned long long)t->shape[0], (unsigned long long)t->shape[1],
             (unsigned long long)t->shape[2], (unsigned long long)t->shape[3],
             (long long)want[0], (long long)(want[1] ? want[1] : 1),
             (long long)(want[2] ? want[2] : 1));
        return NULL;
    }
    b->failed = false;
    return t;
}

static weight bind_matrix(binder *b, int layer, const char *name, int n_in, int n_out,
                          int n_experts) {
    const qwen3_tensor *t = expect(b, layer, name, (int64_t[3]){n_in, n_out, n_experts});
    if (!t) return (weight){0};
    const weight_type *type = weight_type_of(t->type);
    return (weight){t->data, t->type, n_in, n_out,
                    (size_t)n_in / (size_t)type->block * (size_t)type->bytes};
}

static const float *bind_norm(binder *b, int layer, const char *name, int n) {
    const qwen3_tensor *t = expect(b, layer, name, (int64_t[3]){n, 0, 0});
    if (!t) return NULL;
    float *norm = b->next_norm;
    weight_type_of(t->type)->decode(t->data, norm, (size_t)n);
    b->next_norm += n;
    return norm;
}

static void bind_layer(binder *b, int i) {
    const qwen3_config *c = &b->model->config;
    layer *l = &b->model->layers[i];
    int n_q = c->n_heads * c->head_dim, n_kv = c->n_kv_heads * c->head_dim;
    l->attn_norm = bind_norm(b, i, "attn_norm", c->n_embd);
    l->q = bind_matrix(b, i, "attn_q", c->n_embd, n_q, 0);
    l->k = bind_matrix(b, i, "attn_k", c->n_embd, n_kv, 0);
    l->v = bind_matrix(b, i, "attn_v", c->n_embd, n_kv, 0);
    l->o = bind_matrix(b, i, "attn_output", n_q, c->n_embd, 0);
    l->q_norm = bind_norm(b, i, "attn_q_norm", c->head_dim);
    l->k_norm = bind_norm(b, i, "attn_k_norm", c->head_dim);
    l->ffn_norm = bind_norm(b, i, "ffn_norm", c->n_embd);
    if (c->n_experts) {
        int e = c->n_experts, ff = c->n_ff_expert;
        l->router = bind_matrix(b, i, "ffn_gate_inp", c->n_embd, e, 0);
        l->gate = bind_matrix(b, i, "ffn_gate_exps", c->n_embd, ff, e);
        l->up = bind_matrix(b, i, "ffn_up_exps", c->n_embd, ff, e);
        l->down = bind_matrix(b, i, "ffn_down_exps", ff, c->n_embd, e);
    } else {
        l->gate = bind_matrix(b, i, "ffn_gate", c->n_embd, c->n_ff, 0);
        l->up = bind_matrix(b, i, "ffn_up", c->n_embd, c->n_ff, 0);
        l->down = bind_matrix(b, i, "ffn_down", c->n_ff, c->n_embd, 0);
    }
}

static qwen3_status bind_tensors(qwen3_model *m, qwen3_error *err) {
    qwen3_config *c = &m->config;
    const qwen3_tensor *embedding = gguf_find_tensor(m->file, "token_embd.weight");
    if (!embedding) return fail(err, QWEN3_ERR_FORMAT, "tensor 'token_embd.weight' is missing");
    if (embedding->shape[1] > 1 << 24)
        return fail(err, QWEN3_ERR_UNSUPPORTED, "a vocabulary of %llu tokens is beyond any model",
                    (unsigned long long)embedding->shape[1]);
    c->n_vocab = (int32_t)embedding->shape[1];
    c->tied_embedding = !gguf_find_tensor(m->file, "output.weight");
    /* Both sizes of the allocations below are held against the file first. */
    binder b = {m, err, NULL, false};
    m->embedding = bind_matrix(&b, -1, "token_embd", c->n_embd, c->n_vocab, 0);
    if (b.failed) return err ? err->status : QWEN3_ERR_FORMAT;
    if ((size_t)c->n_layers > qwen3_file_n_tensors(m->file))
        return fail(err, QWEN3_ERR_FORMAT, "%d layers are announced, but there are %zu tensors",
                    c->n_layers, qwen3_file_n_tensors(m->file));
    size_t n_norm = (size_t)c->n_layers * 2 * ((size_t)c->n_embd + (size_t)c->head_dim) +
                    (size_t)c->n_embd;
    m->layers = calloc((size_t)c->n_layers, sizeof *m->layers);
    m->norms = malloc(n_norm * sizeof *m->norms);
    if (!m->layers || !m->norms)
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for the table of %d layers",
                    c->n_layers);
    b.next_norm = m->norms;
    m->output = c->tied_embedding ? m->embedding
                                  : bind_matrix(&b, -1, "output", c->n_embd, c->n_vocab, 0);
    m->output_norm = bind_norm(&b, -1, "output_norm", c->n_embd);
    for (int i = 0; i < c->n_layers && !b.failed; i++) bind_layer(&b, i);
    if (b.failed) return err ? err->status : QWEN3_ERR_FORMAT;
    for (size_t i = 0; i < qwen3_file_n_tensors(m->file); i++) {
        qwen3_str name = qwen3_file_tensor(m->file, i)->name;
        if (name.len > 5 && memcmp(name.data + name.len - 5, ".bias", 5) == 0)
            return fail(err, QWEN3_ERR_UNSUPPORTED,
                        "tensor '%.*s': Qwen3 has no biases, so this is another architecture",
                        STR_ARG(name));
    }
    m->n_host_layers = c->n_layers;
    c->default_kv = m->layers[0].k.type == TYPE_F32 ? QWEN3_KV_F32 : QWEN3_KV_F16;
    return QWEN3_OK;
}

/* Frequencies of rotary embedding, theta^(-2i/d); with YaRN (Peng et al. 2023) the slow ones
 * are divided by the factor, the fast ones kept, with a linear ramp between the dimensions that
 * turn beta_fast = 32 and beta_slow = 1 times over the original context. */
static qwen3_status init_rope(qwen3_model *m, qwen3_error *err) {
    const qwen3_config *c = &m->config;
    int half = c->head_dim / 2;
    m->rope_freq = malloc((size_t)half * sizeof *m->rope_freq);
    if (!m->rope_freq) return fail(err, QWEN3_ERR_MEMORY, "out of memory");
    m->rope_scale = 1;
    for (int i = 0; i < half; i++)
        m->rope_freq[i] = 1.0f / powf(c->rope_theta, (float)(2 * i) / (float)c->head_dim);
    if (c->yarn_factor <= 1) return QWEN3_OK;
    double log_theta = 2 * log((double)c->rope_theta);
    double turns_at = c->yarn_original_ctx / (2 * 3.14159265358979323846);
    double low = floor(c->head_dim * log(turns_at / 32) / log_theta);
    double high = ceil(c->head_dim * log(turns_at / 1) / log_theta);
    low = low < 0 ? 0 : low;
    high = high > c->head_dim - 1 ? c->head_dim - 1 : high;
    if (high <= low) high = low + 0.001;
    for (int i = 0; i < half; i++) {
        double ramp = (i - low) / (high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        m->rope_freq[i] *= (float)(ramp / (double)c->yarn_factor + 1 - ramp);
    }
    m->rope_scale = 0.1f * logf(c->yarn_factor) + 1.0f;
    return QWEN3_OK;
}

/* ---- public --------------------------------------------------------------- */

qwen3_model *qwen3_model_from_file(qwen3_file *file, int n_threads, uint64_t expert_bytes,
                                   qwen3_error *err) {
    qwen3_model *m = calloc(1, sizeof *m);
    if (!m) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        qwen3_file_close(file);
        return NULL;
    }
    m->file = file;
    m->owner = getpid();
    atomic_init(&m->n_sessions, 0);
    qwen3_status status = read_config(file, &m->config, err);
    if (status == QWEN3_OK) status = bind_tensors(m, err);
    if (status == QWEN3_OK) status = init_rope(m, err);
    if (status == QWEN3_OK && !(m->cpu = backend_chosen(err))) status = QWEN3_ERR_UNSUPPORTED;
    if (status == QWEN3_OK && (n_threads < 0 || n_threads > 1024))
        status = fail(err, QWEN3_ERR_ARG, "%d threads: use 1 to 1024, or 0 to choose", n_threads);
    int threads = n_threads ? n_threads : machine_threads();
    if (status == QWEN3_OK && !(m->pool = pool_new(threads)))
        status = fail(err, QWEN3_ERR_MEMORY, "the system refused %d threads: use fewer", threads);
    uint64_t memory = expert_bytes ? 0 : physical_memory(); /* experts are checked as they come */
    if (status == QWEN3_OK) status = check_weights(file, memory, m->pool, err);
    if (status == QWEN3_OK && expert_bytes)
        status = offload_open(&m->offload, file, &m->config, m->layers, &m->output, expert_bytes,
                              err);
    if (status != QWEN3_OK) {
        qwen3_model_close(m);
        return NULL;
    }
    return m;
}

qwen3_model *qwen3_model_open(const char *path, int n_threads, uint64_t expert_bytes,
                              qwen3_error *err) {
    qwen3_file *file = qwen3_file_open(path, err);
    return file ? qwen3_model_from_file(file, n_threads, expert_bytes, err) : NULL;
}

void qwen3_model_close(qwen3_model *m) {
    if (!m) return;
    if (m->gpu) m->gpu_release(m->gpu);
    if (m->pool) pool_free(m->pool);
    offload_release(&m->offload);
    qwen3_file_close(m->file);
    free(m->layers);
    free(m->norms);
    free(m->rope_freq);
    free(m);
}

const qwen3_config *qwen3_model_config(const qwen3_model *m) { return &m->config; }
const qwen3_file *qwen3_model_file(const qwen3_model *m) { return m->file; }
qwen3_expert_stats qwen3_model_expert_stats(const qwen3_model *m) {
    return m->offload.experts ? experts_stats(m->offload.experts) : (qwen3_expert_stats){0};
}
qwen3_status qwen3_model_approximate(qwen3_model *m, qwen3_approximation a, qwen3_error *err) {
    if (!(a.prefer >= 0 && a.prefer <= 100) || !(a.drop >= 0 && a.drop <= 1))
        return fail(err, QWEN3_ERR_ARG,
                    "prefer is a number from 0 to 100 and drop one from 0 to 1");
    m->approximation = a;
    m->approximates = m->offload.experts && (a.prefer > 0 || a.drop > 0);
    return QWEN3_OK;
}
void qwen3_model_guess(qwen3_model *m, qwen3_guesses how) {
    if (m->offload.experts) experts_set_guesses(m->offload.experts, how);
}
int qwen3_model_n_threads(const qwen3_model *m) { return pool_size(m->pool); }
const char *qwen3_model_isa(const qwen3_model *m) { return m->cpu->name; }

const char *qwen3_isa(size_t index) {
    for (const backend *const *b = backend_all(); *b; b++)
        if ((*b)->available() && index-- == 0) return (*b)->name;
    return NULL;
}

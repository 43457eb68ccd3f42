/* missing.c - the experts of a layer that the device does not have: see tier.h.
 *
 * What they wait for: the copy stream tells the host which are wanted, while the device computes
 * those that it has, and brings others; the host reuses its pinned memory in the next layer, when
 * that stream, and what it waited for, has come past this one.
 */
#include <string.h>
#include <time.h>

#include "part.h"
#include "pass.h"

static void wait_for(pass *p, int stream, int other) {
    if (p->status == QWEN3_OK) p->status = p->m->api->wait(p->m->device, stream, other, p->err);
}

static void tell(pass *p, void *to, const void *from, size_t bytes) {
    if (p->status == QWEN3_OK)
        p->status = p->m->api->download(p->m->device, GPU_COPY, to, from, bytes, p->err);
}

static void hear(pass *p) {
    if (p->status == QWEN3_OK) p->status = p->m->api->sync(p->m->device, GPU_COPY, p->err);
}

static int n_entries(const pass *p) { return p->n * p->c->n_experts_used; }

void ask_for_missing(pass *p) {
    gpu_tier *t = p->m->tier;
    wait_for(p, GPU_COPY, GPU_COMPUTE);
    if (many(p)) {
        tell(p, t->start, p->s->start, (size_t)(p->c->n_experts + 1) * sizeof *t->start);
        return;
    }
    tell(p, t->experts, p->experts, (size_t)n_entries(p) * sizeof *t->experts);
    tell(p, t->normed, p->s->normed, (size_t)p->n * (size_t)p->c->n_embd * sizeof *t->normed);
}

/* ---- counting ------------------------------------------------------------------------ */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void count(pass *p, int n_wanted, int n_missing) {
    p->m->stats.hits += (uint64_t)(n_wanted - n_missing);
    p->m->stats.misses += (uint64_t)n_missing;
}

static void copy_expert(pass *p, int layer, int expert, int slot) {
    if (p->status == QWEN3_OK)
        p->status = tier_copy(p->m->tier, layer, expert, slot, p->cancel, p->err);
    if (p->status != QWEN3_OK) return;
    p->m->stats.copied++;
    p->m->stats.bytes_copied += p->m->banks[layer].bytes;
}

/* ---- few tokens: the most used are copied to stay ------------------------------------- */

/* Each once, as they come. */
static int distinct(const int32_t *experts, int n, int32_t *list) {
    bool seen[EXPERTS_MOST] = {false};
    int found = 0;
    for (int i = 0; i < n; i++) {
        if (!seen[experts[i]]) list[found++] = experts[i];
        seen[experts[i]] = true;
    }
    return found;
}

/* Of n missing experts: counted over the steps, so that of single ones, too, a share is copied. */
static int n_to_copy(gpu_tier *t, int n) {
    t->owed += t->copy_share * (float)n;
    int copies = (int)t->owed;
    t->owed -= (float)copies;
    return copies < n ? copies : n;
}

/* What of a layer's experts the CPU computes: their entries' rows follow each other. */
typedef struct {
    bool wanted[EXPERTS_MOST];
    int n_rows; /* of all calls */
} cpu_part;

static void compute(pass *p, int layer, cpu_part *cpu) {
    gpu_tier *t = p->m->tier;
    int32_t start[EXPERTS_MOST + 1], token[FEW_COLUMNS * EXPERTS_MOST];
    int n = 0, used = p->c->n_experts_used, first = p->s->batch * used + cpu->n_rows;
    for (int e = 0; e < p->c->n_experts; e++) {
        start[e] = n;
        for (int i = 0; i < n_entries(p) && cpu->wanted[e]; i++) {
            if (t->experts[i] != e) continue;
            t->position[i] = first + n;
            token[n++] = i / used;
        }
    }
    start[p->c->n_experts] = n;
    if (n && p->status == QWEN3_OK)
        p->status = part_compute(p->host, t->first + layer, t->normed, p->n, start, token,
                                 t->rows + (size_t)cpu->n_rows * (size_t)p->c->n_embd, p->cancel,
                                 p->err);
    cpu->n_rows += n;
}

/* The first of n missing experts are copied, as far as there are slots, and computed on the device
 * meanwhile. After an error they are as missing as before: what the device's table still has of
 * them, or of who left, it computes in vain, until it is told of the next ones. */
static void copy_or_compute(pass *p, int layer, const int32_t *missing, int n, int copies,
                            cpu_part *cpu) {
    gpu_tier *t = p->m->tier;
    size_t behind = (size_t)t->n_layers * (size_t)p->c->n_experts;
    int32_t *copied = t->host_table + behind;
    int n_copied = 0;
    memset(copied, -1, (size_t)p->c->n_experts * sizeof *copied);
    memset(cpu->wanted, 0, sizeof cpu->wanted);
    if (p->status == QWEN3_OK) p->status = tier_want(t, layer, missing, n, NULL, 0, false, p->err);
    for (; n_copied < copies && p->status == QWEN3_OK; n_copied++) {
        int slot = slots_admit(&t->slots, layer, missing[n_copied]);
        if (slot < 0) break;
        copied[missing[n_copied]] = slot;
        copy_expert(p, layer, missing[n_copied], slot);
    }
    for (int i = n_copied; i < n; i++) cpu->wanted[missing[i]] = true;
    p->m->stats.computed += (uint64_t)(n - n_copied);
    if (p->status == QWEN3_OK && n_copied) {
        wait_for(p, GPU_COMPUTE, GPU_COPY);
        p->status = tier_publish(t, p->err);
        gpu_experts(p, layer, t->table + behind);
    }
    compute(p, layer, cpu);
    for (int i = 0; i < n_copied && p->status != QWEN3_OK; i++)
        slots_drop(&t->slots, layer, missing[i]);
}

const int32_t *add_missing(pass *p, int layer) {
    gpu_tier *t = p->m->tier;
    expert_store *store = t->host->offload.experts;
    size_t n_embd = (size_t)p->c->n_embd, behind = (size_t)(p->s->batch * p->c->n_experts_used);
    int32_t wanted[EXPERTS_MOST], missing[EXPERTS_MOST];
    hear(p);
    if (p->status != QWEN3_OK) return NULL;
    int n_wanted = distinct(t->experts, n_entries(p), wanted);
    int n = slots_want(&t->slots, layer, wanted, n_wanted, missing);
    count(p, n_wanted, n);
    if (n == 0) return NULL;
    double began = seconds();
    cpu_part cpu = {.n_rows = 0};
    for (int i = 0; i < n_entries(p); i++) t->position[i] = i;
    int copies = n_to_copy(t, n), most = store ? experts_most(store) : n;
    for (int i = 0; i < n && p->status == QWEN3_OK; i += most) {
        int some = n - i < most ? n - i : most, left = copies - i < 0 ? 0 : copies - i;
        if (i > 0) p->status = p->m->api->sync(p->m->device, GPU_COMPUTE, p->err);
        copy_or_compute(p, layer, missing + i, some, left < some ? left : some, &cpu);
    }
    upload(p, p->s->position, t->position, (size_t)n_entries(p) * sizeof *t->position);
    if (cpu.n_rows)
        upload(p, p->s->expert_out + behind * n_embd, t->rows,
               (size_t)cpu.n_rows * n_embd * sizeof *t->rows);
    p->m->stats.stall_s += seconds() - began;
    return p->s->position;
}

/* ---- a prompt: they pass in groups, one is copied while another is computed ------------- */

static void copy_group(pass *p, int layer, const int32_t *missing, int n_missing, int group) {
    gpu_tier *t = p->m->tier;
    int first = group * t->group, half = t->slots.n_slots + group % 2 * t->group;
    int n = n_missing - first < t->group ? n_missing - first : t->group, next = first + n;
    int n_next = n_missing - next < t->group ? n_missing - next : t->group;
    if (p->status == QWEN3_OK)
        p->status = tier_want(t, layer, missing + first, n, missing + next, n_next, true, p->err);
    for (int i = 0; i < n; i++) copy_expert(p, layer, missing[first + i], half + i);
}

/* Tells the device in which slot of a half each one will be: a row of the table for each group. */
static void announce(pass *p, const int32_t *missing, int n) {
    gpu_tier *t = p->m->tier;
    size_t n_experts = (size_t)p->c->n_experts, behind = (size_t)t->n_layers * n_experts;
    size_t bytes = (size_t)blocks(n, t->group) * n_experts * sizeof *t->table;
    int32_t *rows = t->host_table + behind;
    memset(rows, -1, bytes);
    for (int i = 0; i < n; i++) {
        int group = i / t->group, half = t->slots.n_slots + group % 2 * t->group;
        rows[(size_t)group * n_experts + (size_t)missing[i]] = half + i % t->group;
    }
    upload(p, t->table + behind, rows, bytes);
}

void pass_missing(pass *p, int layer) {
    gpu_tier *t = p->m->tier;
    size_t n_experts = (size_t)p->c->n_experts;
    const int32_t *slot_of = t->slots.slot_of + (size_t)layer * n_experts;
    int32_t missing[EXPERTS_MOST];
    int n_wanted = 0, n = 0;
    hear(p);
    if (p->status != QWEN3_OK) return;
    for (int e = 0; e < p->c->n_experts; e++) {
        bool wanted = t->start[e + 1] > t->start[e];
        n_wanted += wanted;
        if (wanted && slot_of[e] < 0) missing[n++] = e;
    }
    count(p, n_wanted, n);
    if (n == 0) return;
    double began = seconds();
    int n_groups = blocks(n, t->group);
    announce(p, missing, n);
    copy_group(p, layer, missing, n, 0);
    for (int g = 0; g < n_groups && p->status == QWEN3_OK; g++) {
        bool another = g + 1 < n_groups; /* goes where the one before this was */
        if (another && g > 0) wait_for(p, GPU_COPY, GPU_COMPUTE);
        wait_for(p, GPU_COMPUTE, GPU_COPY);
        gpu_experts(p, layer, t->table + ((size_t)t->n_layers + (size_t)g) * n_experts);
        if (another) copy_group(p, layer, missing, n, g + 1);
    }
    p->m->stats.stall_s += seconds() - began;
}

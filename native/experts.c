/* experts.c - see experts.h; who leaves is decided by heat.h. */
#include "experts.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "error.h"
#include "heat.h"
#include "readers.h"
#include "trial.h"

enum { FREE = -1 };

/* Why an expert is where it is: a token chose it, a prompt passes by, or it was guessed. */
typedef enum { STAYS, PASSES, GUESSED } tenure;

typedef struct {
    int key;      /* of the expert: layer * n_experts + expert, or FREE */
    size_t bytes; /* of memory that it takes */
    tenure tenure;
    bool was_there, counted;
    read_request reads[EXPERT_PARTS];
} slot;

struct expert_store {
    int n_layers, n_experts;
    expert_extent *extents;
    size_t *bytes; /* of a layer's expert in memory */
    size_t largest;
    uint64_t budget, used, hits, misses, guesses, right_guesses;
    readers *readers;
    uint8_t *arena;
    slot *slots;
    double *order;    /* of the slots: the lowest leaves first, INFINITY: is free */
    uint64_t *pinned; /* of the slots: in which call it was wanted or guessed last */
    size_t n_mapped;      /* bytes of the arena's address space */
    int n_slots, n_begun; /* slots from n_begun on were never used */
    bool fixed;           /* all slots are as large as the largest */
    int32_t *slot_of;     /* [n_layers * n_experts], -1: not there */
    expert_heat *usage;   /* likewise */
    float half_life;      /* tokens after which a use counts half */
    uint64_t call, token;
    int layer, n_awaited; /* of the last call */
    int n_pinned;         /* likewise */
    atomic_bool failed;   /* a read that somebody waited for, since it was asked */
    int n_guessed, most_guessed;
    qwen3_guesses guessing;
    trial trial;          /* of guessing */
    int64_t began, ended; /* of the token: when its first and its last layer asked */
    bool one_by_one;      /* it came alone */
    /* waiting */
    pthread_mutex_t lock;
    int n_waiting;
    int64_t stall_ns, stall_began;
};

/* ---- sizes ------------------------------------------------------------------------- */

static size_t up_to(size_t n, size_t page) { return (n + page - 1) & ~(page - 1); }

/* Of one matrix with the pages that it shares with its neighbours, wherever it begins. */
static size_t part_bytes(const expert_extent *e) {
    bool aligned = e->offset % READ_PAGE == 0 && e->bytes % READ_PAGE == 0;
    return aligned ? e->bytes : up_to(e->bytes + READ_PAGE - 1, READ_PAGE);
}

/* Whole pages of the system: they are what can be given back. */
static size_t layer_bytes(const expert_extent *extents) {
    size_t bytes = 0;
    for (int part = 0; part < EXPERT_PARTS; part++) bytes += part_bytes(&extents[part]);
    return up_to(bytes, (size_t)sysconf(_SC_PAGESIZE));
}

static size_t largest_layer(const expert_bank *bank) {
    size_t largest = 0;
    for (int i = 0; i < bank->n_layers; i++) {
        size_t bytes = layer_bytes(bank->extents + (size_t)i * EXPERT_PARTS);
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

uint64_t experts_least_budget(const expert_bank *bank) {
    uint64_t n = (uint64_t)bank->n_layers * (uint64_t)bank->n_used;
    return (n < 2 ? 2 : n) * largest_layer(bank); /* one is computed while the next is read */
}

static const expert_extent *extent_of(const expert_store *s, int layer, int part) {
    return &s->extents[layer * EXPERT_PARTS + part];
}

static uint8_t *memory_of(const expert_store *s, const slot *at) {
    return s->arena + (size_t)(at - s->slots) * s->largest;
}

/* ---- who stays ------------------------------------------------------------------------ */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void experts_set_half_life(expert_store *s, float tokens) { s->half_life = tokens; }

/* Of an expert that no token has used yet: guesses of former calls leave first, then what passed
 * and what a cancelled step did not come to, the oldest first. */
static double order_of(const expert_store *s, tenure tenure) {
    return (double)s->call - 1e15 * (tenure == GUESSED ? 2 : 1);
}

static bool pending(const slot *at) {
    for (int part = 0; part < EXPERT_PARTS; part++)
        if (atomic_load(&at->reads[part].state) == READ_PENDING) return true;
    return false;
}

static bool begun(const slot *at) {
    for (int part = 0; part < EXPERT_PARTS; part++)
        if (atomic_load(&at->reads[part].state) != READ_IDLE) return true;
    return false;
}

/* Whether something of it has failed, or was never read. */
static bool is_incomplete(const slot *at) {
    for (int part = 0; part < EXPERT_PARTS; part++) {
        read_state state = atomic_load(&at->reads[part].state);
        if (state == READ_FAILED || state == READ_IDLE) return true;
    }
    return false;
}

static bool may_leave(const expert_store *s, int i) {
    return s->order[i] != INFINITY && s->pinned[i] != s->call;
}

static bool leaves_before(const expert_store *s, int a, int b) {
    return s->order[a] != s->order[b] ? s->order[a] < s->order[b] : s->pinned[a] < s->pinned[b];
}

/* Somebody who may leave and is not being read, or NULL. Of those that only pass, for one that
 * passes too, the one that came last: the first ones are met again by the next tokens. */
static slot *choose_victim(expert_store *s, bool for_passing) {
    slot *lowest = NULL, *newest = NULL;
    for (int i = 0; i < s->n_begun; i++) {
        slot *at = &s->slots[i];
        if (!may_leave(s, i)) continue;
        bool lower = !lowest || leaves_before(s, i, (int)(lowest - s->slots));
        bool newer = for_passing && at->tenure == PASSES &&
                     (!newest || s->order[i] > s->order[newest - s->slots]);
        if ((!lower && !newer) || pending(at)) continue;
        if (lower) lowest = at;
        if (newer) newest = at;
    }
    return newest && lowest->tenure == PASSES ? newest : lowest;
}

/* A wrong guess, or what was left by a step that was cancelled, as soon as it is read. There is
 * one, as no more than experts_most are wanted. */
static slot *wait_for_victim(expert_store *s) {
    int i = 0;
    while (!may_leave(s, i)) i++;
    for (int part = 0; part < EXPERT_PARTS; part++)
        readers_wait(s->readers, &s->slots[i].reads[part], NULL);
    return &s->slots[i];
}

static void resize(expert_store *s, slot *at, size_t bytes) {
    if (bytes < at->bytes) madvise(memory_of(s, at) + bytes, at->bytes - bytes, MADV_DONTNEED);
    s->used = s->used - at->bytes + bytes;
    at->bytes = bytes;
}

/* Ends being a guess: it was right, or it leaves. */
static void end_guess(expert_store *s, slot *at, bool right) {
    if (at->tenure != GUESSED) return;
    bool read = begun(at);
    s->guesses += read;
    s->right_guesses += read && right;
    s->n_guessed--;
    at->tenure = STAYS;
}

static void leave(expert_store *s, slot *at) {
    if (at->key == FREE) return;
    end_guess(s, at, false);
    s->slot_of[at->key] = -1;
    s->order[at - s->slots] = INFINITY;
    at->key = FREE;
}

static slot *free_slot(expert_store *s) {
    for (int i = 0; i < s->n_begun; i++)
        if (s->order[i] == INFINITY) return &s->slots[i];
    return &s->slots[s->n_begun++];
}

static bool has_room(const expert_store *s, size_t bytes) { return s->used + bytes <= s->budget; }

/* A slot of this many bytes, within the budget: at, if that is enough. */
static slot *make_room(expert_store *s, size_t bytes, bool for_passing, slot *at) {
    for (;; at = NULL) {
        if (!at) at = has_room(s, bytes) ? free_slot(s) : choose_victim(s, for_passing);
        if (!at) at = wait_for_victim(s);
        leave(s, at);
        if (s->used - at->bytes + bytes <= s->budget) {
            resize(s, at, bytes);
            return at;
        }
        resize(s, at, 0);
    }
}

/* ---- wanting ------------------------------------------------------------------------- */

static slot *slot_of(const expert_store *s, int layer, int expert) {
    int at = s->slot_of[layer * s->n_experts + expert];
    return at < 0 ? NULL : &s->slots[at];
}

static void pin(expert_store *s, const slot *at) {
    uint64_t *call = &s->pinned[at - s->slots];
    s->n_pinned += *call != s->call;
    *call = s->call;
}

/* A slot for an expert that is not there, that of a known victim or NULL; nothing is read yet. */
static void admit(expert_store *s, int layer, int expert, tenure tenure, slot *victim) {
    slot *at = make_room(s, s->bytes[layer], tenure == PASSES, victim);
    at->key = layer * s->n_experts + expert;
    s->slot_of[at->key] = (int32_t)(at - s->slots);
    uint8_t *to = memory_of(s, at);
    for (int part = 0; part < EXPERT_PARTS; part++) {
        const expert_extent *e = extent_of(s, layer, part);
        read_request *r = &at->reads[part];
        r->file = e->file;
        r->offset = e->offset + (uint64_t)expert * e->bytes;
        r->size = e->bytes;
        r->to = to;
        atomic_store(&r->state, READ_IDLE);
        to += part_bytes(e);
    }
    at->tenure = tenure;
    at->counted = false;
    s->order[at - s->slots] = order_of(s, tenure);
    pin(s, at);
}

/* Those that are there stay, before anybody leaves. */
static void keep(expert_store *s, int layer, const int32_t *experts, int n, bool passing) {
    for (int i = 0; i < n; i++) {
        slot *at = slot_of(s, layer, experts[i]);
        if (!at) continue;
        pin(s, at);
        if (at->tenure != GUESSED) continue;
        end_guess(s, at, true);
        at->tenure = passing ? PASSES : STAYS;
        s->order[at - s->slots] = order_of(s, PASSES);
        s->misses++;
    }
}

static void admit_missing(expert_store *s, int layer, const int32_t *experts, int n, bool passing) {
    for (int i = 0; i < n; i++) {
        if (slot_of(s, layer, experts[i])) continue;
        admit(s, layer, experts[i], passing ? PASSES : STAYS, NULL);
        s->misses++;
    }
}

static void read_part(expert_store *s, slot *at, int part, bool idle) {
    read_state state = atomic_load(&at->reads[part].state);
    if (state == READ_IDLE || state == READ_FAILED)
        readers_submit(s->readers, &at->reads[part], idle);
}

/* Gate and up of all of them first: they are needed first. */
static void read_missing(expert_store *s, int layer, const int32_t *experts, int n, bool idle) {
    for (int i = 0; i < n; i++) {
        read_part(s, slot_of(s, layer, experts[i]), EXPERT_GATE, idle);
        read_part(s, slot_of(s, layer, experts[i]), EXPERT_UP, idle);
    }
    for (int i = 0; i < n; i++) read_part(s, slot_of(s, layer, experts[i]), EXPERT_DOWN, idle);
}

static bool is_there(const slot *at) {
    for (int part = 0; part < EXPERT_PARTS; part++)
        if (atomic_load(&at->reads[part].state) != READ_DONE) return false;
    return true;
}

/* Tells tokens apart, and how long one took that came alone. */
static void follow(expert_store *s, int layer, bool passing) {
    int64_t now = now_ns();
    if (layer < s->layer) {
        if (s->one_by_one && s->layer == s->n_layers - 1)
            trial_took(&s->trial, s->ended - s->began);
        s->token++;
        s->began = now;
        s->one_by_one = layer == 0;
    }
    s->layer = layer;
    s->ended = now;
    s->one_by_one &= !passing;
}

void experts_want(expert_store *s, int layer, const int32_t *experts, int n, const int32_t *next,
                  int n_next, bool passing) {
    follow(s, layer, passing);
    s->call++;
    s->n_pinned = s->n_awaited = 0;
    readers_recall(s->readers);
    keep(s, layer, experts, n, passing);
    keep(s, layer, next, n_next, passing);
    admit_missing(s, layer, experts, n, passing);
    admit_missing(s, layer, next, n_next, passing);
    for (int i = 0; i < n; i++) {
        slot *at = slot_of(s, layer, experts[i]);
        if (at->counted) *(is_incomplete(at) ? &s->misses : &s->hits) += 1;
        at->counted = true;
        at->was_there = is_there(at);
        s->n_awaited += !at->was_there;
        if (passing) continue;
        at->tenure = STAYS;
        s->order[at - s->slots] = heat_use(&s->usage[at->key], s->token, s->half_life);
    }
    read_missing(s, layer, experts, n, false);
    read_missing(s, layer, next, n_next, false);
}

void experts_guess(expert_store *s, int layer, const int32_t *experts, int n) {
    for (int i = 0; i < n; i++) {
        slot *at = slot_of(s, layer, experts[i]);
        if (at) pin(s, at);
    }
    int known = 0;
    for (; known < n; known++) {
        if (slot_of(s, layer, experts[known])) continue;
        if (s->n_pinned == experts_most(s)) break;
        slot *wrong = NULL;
        if (s->n_guessed == s->most_guessed) {
            wrong = choose_victim(s, false);
            if (!wrong || wrong->tenure != GUESSED) break; /* they are still being read */
        }
        admit(s, layer, experts[known], GUESSED, wrong);
        s->n_guessed++;
    }
    read_missing(s, layer, experts, known, true);
}

bool experts_guesses(const expert_store *s) {
    if (s->most_guessed == 0) return false;
    return s->guessing == QWEN3_GUESS_TRY ? trial_way(&s->trial) : s->guessing == QWEN3_GUESS_ON;
}

void experts_set_guesses(expert_store *s, qwen3_guesses how) { s->guessing = how; }

int experts_n_awaited(const expert_store *s) { return s->n_awaited; }

bool experts_was_there(const expert_store *s, int layer, int expert) {
    return slot_of(s, layer, expert)->was_there;
}

bool experts_holds(const expert_store *s, int layer, int expert) {
    const slot *at = slot_of(s, layer, expert);
    return at && at->tenure != GUESSED;
}

/* Counts the time in which anybody waits once. */
static void count_waiting(expert_store *s, int change) {
    pthread_mutex_lock(&s->lock);
    if (s->n_waiting == 0) s->stall_began = now_ns();
    s->n_waiting += change;
    if (s->n_waiting == 0) s->stall_ns += now_ns() - s->stall_began;
    pthread_mutex_unlock(&s->lock);
}

const uint8_t *experts_matrix(expert_store *s, int layer, int expert, expert_part part,
                              const atomic_bool *cancel) {
    const read_request *r = &slot_of(s, layer, expert)->reads[part];
    if (atomic_load(&r->state) != READ_DONE) {
        count_waiting(s, 1);
        readers_wait(s->readers, r, cancel);
        count_waiting(s, -1);
        if (atomic_load(&r->state) == READ_FAILED) atomic_store(&s->failed, true);
    }
    return r->to + r->offset % READ_PAGE;
}

qwen3_status experts_status(expert_store *s, qwen3_error *err) {
    qwen3_error why = {0};
    qwen3_status status = readers_status(s->readers, &why); /* a wrong guess may have failed */
    if (!atomic_exchange(&s->failed, false)) return QWEN3_OK;
    return fail(err, status, "%s", why.text);
}

qwen3_expert_stats experts_stats(const expert_store *s) {
    return (qwen3_expert_stats){.budget = s->budget, .used = s->used, .hits = s->hits,
                                .misses = s->misses, .guesses = s->guesses,
                                .right_guesses = s->right_guesses,
                                .bytes_read = readers_bytes(s->readers),
                                .stall_s = (double)s->stall_ns * 1e-9,
                                .direct = readers_direct(s->readers)};
}

/* ---- life ------------------------------------------------------------------------------ */

/* A weight that is not finite is found when it comes, as those of other models when they open. */
static bool check_read(const void *store, const read_request *r) {
    const expert_store *s = store;
    size_t index = (size_t)(r->to - s->arena) / s->largest;
    const slot *at = &s->slots[index];
    const expert_extent *e = extent_of(s, at->key / s->n_experts, (int)(r - at->reads));
    size_t n_blocks = e->bytes / (size_t)weight_type_of(e->type)->bytes;
    return find_not_finite(e->type, r->to + r->offset % READ_PAGE, n_blocks) == n_blocks;
}

uint8_t *experts_fix_slots(expert_store *s, size_t *bytes) {
    if (s->n_begun && !s->fixed) return NULL;
    s->fixed = true;
    for (int i = 0; i < s->n_layers; i++) s->bytes[i] = s->largest; /* nobody gives any back */
    int most = experts_most(s);
    s->n_slots = s->n_slots < most ? s->n_slots : most;
    *bytes = (size_t)s->n_slots * s->largest;
    return s->arena;
}

int experts_most(const expert_store *s) { return (int)(s->budget / s->largest); }

/* What a token chooses in a layer, unless that were much of the budget, or all have room. */
static int room_for_guesses(const expert_store *s, const expert_bank *bank) {
    uint64_t all = 0;
    for (int i = 0; i < bank->n_layers; i++) all += s->bytes[i] * (uint64_t)bank->n_experts;
    uint64_t most = s->budget >= all ? 0 : s->budget / s->largest / 8;
    return most < (uint64_t)bank->n_used ? (int)most : bank->n_used;
}

static qwen3_status allocate(expert_store *s, const expert_bank *bank, qwen3_error *err) {
    size_t n_extents = (size_t)bank->n_layers * EXPERT_PARTS;
    size_t n_keys = (size_t)bank->n_layers * (size_t)bank->n_experts, smallest = SIZE_MAX;
    s->extents = malloc(n_extents * sizeof *s->extents);
    s->bytes = malloc((size_t)bank->n_layers * sizeof *s->bytes);
    s->slot_of = malloc(n_keys * sizeof *s->slot_of);
    s->usage = calloc(n_keys, sizeof *s->usage);
    if (!s->extents || !s->bytes || !s->slot_of || !s->usage)
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for the table of experts");
    memcpy(s->extents, bank->extents, n_extents * sizeof *s->extents);
    memset(s->slot_of, -1, n_keys * sizeof *s->slot_of);
    for (int i = 0; i < bank->n_layers; i++) {
        s->bytes[i] = layer_bytes(extent_of(s, i, 0));
        smallest = s->bytes[i] < smallest ? s->bytes[i] : smallest;
    }
    s->largest = largest_layer(bank);
    s->most_guessed = room_for_guesses(s, bank);
    size_t n_slots = (size_t)(s->budget / smallest);
    s->n_slots = (int)(n_slots < n_keys ? n_slots : n_keys);
    s->slots = calloc((size_t)s->n_slots, sizeof *s->slots);
    s->order = calloc((size_t)s->n_slots, sizeof *s->order);
    s->pinned = calloc((size_t)s->n_slots, sizeof *s->pinned);
    s->n_mapped = (size_t)s->n_slots * s->largest;
    s->arena = mmap(NULL, s->n_mapped, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->arena == MAP_FAILED) s->arena = NULL;
    if (!s->slots || !s->order || !s->pinned || !s->arena)
        return fail(err, QWEN3_ERR_MEMORY, "out of memory for %d experts", s->n_slots);
#ifdef MADV_NOHUGEPAGE /* what is counted is what is taken */
    madvise(s->arena, s->n_mapped, MADV_NOHUGEPAGE);
#endif
    for (int i = 0; i < s->n_slots; i++) {
        s->slots[i].key = FREE;
        s->order[i] = INFINITY;
    }
    return QWEN3_OK;
}

expert_store *experts_open(const expert_bank *bank, uint64_t budget, int n_readers,
                           qwen3_error *err) {
    uint64_t least = experts_least_budget(bank);
    if (budget < least) {
        fail(err, QWEN3_ERR_ARG,
             "%.1f MB for experts are too few: one token meets %d in each of %d layers, which take "
             "%llu MB",
             (double)budget * 1e-6, bank->n_used, bank->n_layers,
             (unsigned long long)((least + 999999) / 1000000));
        return NULL;
    }
    expert_store *s = calloc(1, sizeof *s);
    if (!s) {
        fail(err, QWEN3_ERR_MEMORY, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    s->n_layers = bank->n_layers;
    s->n_experts = bank->n_experts;
    s->layer = bank->n_layers;
    s->budget = budget;
    s->half_life = HEAT_HALF_LIFE;
    qwen3_status status = allocate(s, bank, err);
    if (status == QWEN3_OK &&
        (s->readers = readers_new(bank->paths, bank->n_paths, n_readers, check_read, s, err)))
        return s;
    experts_close(s);
    return NULL;
}

void experts_close(expert_store *s) {
    if (!s) return;
    readers_free(s->readers);
    if (s->arena) munmap(s->arena, s->n_mapped);
    pthread_mutex_destroy(&s->lock);
    free(s->extents);
    free(s->bytes);
    free(s->slots);
    free(s->order);
    free(s->pinned);
    free(s->slot_of);
    free(s->usage);
    free(s);
}

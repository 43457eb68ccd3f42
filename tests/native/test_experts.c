/* The expert store over a file whose bytes say where they lie: what is wanted is there, whatever
 * the budget; who is used stays; a failed read is an error and no more. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blocks.h"
#include "experts.h"
#include "readers.h"
#include "trial.h"

static int failures;

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);       \
            failures++;                                                           \
        }                                                                         \
    } while (0)

enum { LAYERS = 5, EXPERTS = 16, USED = 3 };

static uint32_t state = 1;

static int below(int n) {
    state = state * 1664525 + 1013904223;
    return (int)((state >> 8) % (uint32_t)n);
}

/* The four bytes at a place of the file: finite as a float, and no two alike. */
static uint32_t word_at(uint64_t offset) { return (uint32_t)(offset / 4) & 0x3fffffff; }

typedef struct {
    char path[64];
    expert_extent extents[LAYERS * EXPERT_PARTS];
    expert_bank bank;
    const char *paths[1];
} bank_file;

static void new_bank(bank_file *b, bool aligned) {
    snprintf(b->path, sizeof b->path, "test-experts-%d.bin", (int)getpid());
    FILE *file = fopen(b->path, "wb");
    if (!file) abort();
    uint64_t at = aligned ? 4096 : 36;
    for (int i = 0; i < LAYERS * EXPERT_PARTS; i++) {
        size_t bytes = aligned ? 4096u * (size_t)(1 + i % 4) : 4u * (size_t)(300 + below(3000));
        b->extents[i] = (expert_extent){0, at, bytes, TYPE_F32};
        at += EXPERTS * bytes + (aligned ? 4096 : 4u * (size_t)below(40));
    }
    for (uint64_t i = 0; i < at; i += 4) {
        uint32_t word = word_at(i);
        fwrite(&word, 4, 1, file);
    }
    fclose(file);
    b->paths[0] = b->path;
    b->bank = (expert_bank){LAYERS, EXPERTS, USED, b->extents, b->paths, 1};
}

static bool right(expert_store *s, const bank_file *b, int layer, int expert) {
    for (int part = 0; part < EXPERT_PARTS; part++) {
        const expert_extent *e = &b->extents[layer * EXPERT_PARTS + part];
        const uint8_t *p = experts_matrix(s, layer, expert, (expert_part)part, NULL);
        for (size_t i = 0; i < e->bytes; i += 4) {
            uint32_t word;
            memcpy(&word, p + i, 4);
            if (word != word_at(e->offset + (uint64_t)expert * e->bytes + i)) return false;
        }
    }
    return true;
}

static expert_store *open_store(const bank_file *b, uint64_t budget, int n_readers) {
    qwen3_error err = {0};
    expert_store *s = experts_open(&b->bank, budget, n_readers, &err);
    if (!s) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return s;
}

static int distinct(int32_t *out, int n) {
    for (int i = 0; i < n; i++) {
        out[i] = below(EXPERTS);
        for (int k = 0; k < i; k++)
            if (out[k] == out[i]) i--, k = n;
    }
    return n;
}

static void test_contents(bool aligned) {
    bank_file b;
    new_bank(&b, aligned);
    uint64_t least = experts_least_budget(&b.bank);
    for (int spare = 0; spare < 8; spare++) {
        expert_store *s = open_store(&b, least + (uint64_t)spare * least / 2, 1 + spare % 4);
        for (int step = 0; step < 60; step++) {
            bool passing = below(6) == 0;
            int layer = step % LAYERS, n = 1 + below(USED), n_next = below(4);
            int32_t all[USED + 4];
            distinct(all, n + n_next);
            experts_want(s, layer, all, n, all + n, n_next, passing);
            for (int i = 0; i < n; i++) CHECK(right(s, &b, layer, all[i]));
            int32_t ahead[USED]; /* guessed, rightly or not, for a layer to come or this one */
            if (below(2)) experts_guess(s, below(LAYERS), ahead, distinct(ahead, USED));
            for (int i = 0; i < n; i++) CHECK(right(s, &b, layer, all[i]));
            CHECK(experts_stats(s).used <= experts_stats(s).budget);
            CHECK(experts_status(s, NULL) == QWEN3_OK);
        }
        qwen3_expert_stats stats = experts_stats(s);
        CHECK(stats.hits + stats.misses >= 60 && stats.bytes_read > 0);
        experts_close(s);
    }
    remove(b.path);
}

/* Each of them where it always was, in memory that a device may copy from, whatever their sizes. */
static void test_fixed_slots(bool aligned) {
    bank_file b;
    size_t n_bytes, again;
    new_bank(&b, aligned);
    uint64_t budget = experts_least_budget(&b.bank) * 3 / 2;
    expert_store *s = open_store(&b, budget, 2);
    const uint8_t *memory = experts_fix_slots(s, &n_bytes);
    CHECK(memory && n_bytes <= budget && n_bytes >= experts_least_budget(&b.bank));
    size_t largest = n_bytes / (size_t)experts_most(s);
    for (int step = 0; step < 100; step++) {
        int32_t all[2 * USED];
        int layer = step % LAYERS;
        distinct(all, 2 * USED);
        experts_want(s, layer, all, USED, all + USED, USED, below(3) == 0);
        for (int i = 0; i < USED; i++) {
            const uint8_t *gate = experts_matrix(s, layer, all[i], EXPERT_GATE, NULL);
            CHECK(right(s, &b, layer, all[i]));
            CHECK(gate >= memory && gate < memory + n_bytes);
            CHECK((size_t)(gate - memory) % largest < READ_PAGE);
        }
        CHECK(experts_stats(s).used <= n_bytes && experts_stats(s).used % largest == 0);
    }
    CHECK(experts_stats(s).used == n_bytes);
    CHECK(experts_fix_slots(s, &again) == memory && again == n_bytes);
    experts_close(s);
    s = open_store(&b, budget, 2);
    int32_t first = 0;
    experts_want(s, 0, &first, 1, NULL, 0, false);
    CHECK(!experts_fix_slots(s, &again));
    experts_close(s);
    remove(b.path);
}

/* With room for all of them each is read once. */
static void test_resident(void) {
    bank_file b;
    new_bank(&b, false);
    expert_store *s = open_store(&b, EXPERTS * experts_least_budget(&b.bank), 2);
    for (int round = 0; round < 3; round++)
        for (int layer = 0; layer < LAYERS; layer++)
            for (int32_t e = 0; e < EXPERTS; e++) {
                experts_want(s, layer, &e, 1, NULL, 0, round == 0);
                CHECK(experts_was_there(s, layer, e) == (round > 0));
                CHECK(right(s, &b, layer, e));
            }
    qwen3_expert_stats stats = experts_stats(s);
    CHECK(stats.misses == LAYERS * EXPERTS && stats.hits == 2 * LAYERS * EXPERTS);
    experts_close(s);
    remove(b.path);
}

/* An expert that every other token uses outlives those that are used once, and a prompt that
 * passes. */
static void test_policy(void) {
    bank_file b;
    new_bank(&b, true);
    expert_store *s = open_store(&b, experts_least_budget(&b.bank), 2);
    int32_t often = 7;
    for (int token = 0; token < 40; token++)
        for (int layer = 0; layer < LAYERS; layer++) {
            int32_t others[2] = {token % 7, 8 + token % 8};
            experts_want(s, layer, others, 2, NULL, 0, false);
            CHECK(right(s, &b, layer, others[0]) && right(s, &b, layer, others[1]));
            if (token % 2) continue;
            experts_want(s, layer, &often, 1, NULL, 0, false);
            CHECK(token < 20 || experts_was_there(s, layer, often)); /* it takes some uses */
            CHECK(right(s, &b, layer, often));
        }
    for (int layer = 0; layer < LAYERS; layer++)
        for (int32_t e = 0; e < EXPERTS; e++) {
            if (e == often) continue;
            experts_want(s, layer, &e, 1, NULL, 0, true);
            CHECK(right(s, &b, layer, e));
        }
    for (int layer = 0; layer < LAYERS; layer++) {
        experts_want(s, layer, &often, 1, NULL, 0, false);
        CHECK(experts_was_there(s, layer, often));
        CHECK(right(s, &b, layer, often));
    }
    experts_close(s);
    remove(b.path);
}

/* Right guesses are misses that need no waiting; wrong ones push out nobody who stays. */
static void test_guesses(void) {
    enum { SHARE = 8 }; /* of the experts have room */
    bank_file b;
    new_bank(&b, true);
    uint64_t budget = LAYERS * SHARE * (experts_least_budget(&b.bank) / (LAYERS * USED));
    expert_store *s = open_store(&b, budget, 2);
    experts_set_guesses(s, QWEN3_GUESS_ON);
    CHECK(experts_guesses(s));
    for (int token = 0; token < 12; token++)
        for (int layer = 0; layer < LAYERS; layer++) {
            int32_t here[2] = {0, 1 + token}, next[2] = {1 + token, 15 - token % 2};
            if (token % 2) next[1] = 0; /* is there */
            experts_want(s, layer, here, 2, NULL, 0, false);
            CHECK(token == 0 || experts_was_there(s, layer, 0));
            CHECK(right(s, &b, layer, 0) && right(s, &b, layer, 1 + token));
            if (layer + 1 == LAYERS) continue;
            experts_guess(s, layer + 1, next, 2);
            for (int i = 0; i < 2; i++) {
                (void)experts_matrix(s, layer + 1, next[i], EXPERT_DOWN, NULL); /* is read */
                CHECK(right(s, &b, layer + 1, next[i]));
            }
        }
    qwen3_expert_stats stats = experts_stats(s);
    CHECK(stats.hits == (12 - 1) * LAYERS && stats.misses == (12 + 1) * LAYERS);
    CHECK(stats.right_guesses == 12 * (LAYERS - 1));
    CHECK(stats.guesses > stats.right_guesses);
    CHECK(stats.used <= stats.budget);
    experts_set_guesses(s, QWEN3_GUESS_OFF);
    CHECK(!experts_guesses(s));
    experts_close(s);
    s = open_store(&b, EXPERTS * experts_least_budget(&b.bank), 1);
    experts_set_guesses(s, QWEN3_GUESS_ON);
    CHECK(!experts_guesses(s)); /* everything has room */
    experts_close(s);
    remove(b.path);
}

/* Six tokens' uses outlive 30 experts that are used once, which LRU forgets them for. */
static void test_half_life(float tokens, bool stays) {
    bank_file b;
    new_bank(&b, true);
    expert_store *s = open_store(&b, experts_least_budget(&b.bank), 2);
    experts_set_half_life(s, tokens);
    for (int32_t token = 0; token < 12; token++)
        for (int layer = 0; layer < LAYERS; layer++) {
            int32_t e = token < 6 ? 0 : token;
            experts_want(s, layer, &e, 1, NULL, 0, false);
            CHECK(right(s, &b, layer, e));
        }
    int32_t often = 0;
    experts_want(s, 0, &often, 1, NULL, 0, false);
    CHECK(experts_was_there(s, 0, often) == stays);
    experts_close(s);
    remove(b.path);
}

/* The way that is faster is kept, hiccups or not, and tried again after some time. */
static void test_trial(void) {
    for (int faster = 0; faster < 2; faster++) {
        trial t = {0};
        int taken[2] = {0};
        for (int i = 0; i < 3 * TRIAL_EVERY; i++) {
            bool way = trial_way(&t);
            taken[way]++;
            trial_took(&t, (i % 7 == 0 ? 5000 : 100) + i % 100 + (way == faster ? 0 : 40));
        }
        CHECK(taken[!faster] == 3 * TRIAL_PAIRS);
    }
}

/* A file that is cut, and one with a NaN: an error that names it; after repair all is well. */
static void test_failures(void) {
    bank_file b;
    new_bank(&b, false);
    expert_store *s = open_store(&b, experts_least_budget(&b.bank), 2);
    const expert_extent *last = &b.extents[LAYERS * EXPERT_PARTS - 1];
    uint64_t end = last->offset + EXPERTS * last->bytes;
    int32_t e = EXPERTS - 1;
    qwen3_error err = {0};
    CHECK(truncate(b.path, (off_t)(end - 4)) == 0);
    experts_want(s, LAYERS - 1, &e, 1, NULL, 0, false);
    (void)experts_matrix(s, LAYERS - 1, e, EXPERT_DOWN, NULL);
    CHECK(experts_status(s, &err) == QWEN3_ERR_FORMAT && strstr(err.text, b.path));
    CHECK(experts_status(s, &err) == QWEN3_OK);
    /* It is told although the slot has gone to another meanwhile. */
    experts_want(s, LAYERS - 1, &e, 1, NULL, 0, true);
    (void)experts_matrix(s, LAYERS - 1, e, EXPERT_DOWN, NULL);
    for (int32_t other = 0; other < EXPERTS - 1; other++) {
        experts_want(s, LAYERS - 1, &other, 1, NULL, 0, false);
        CHECK(right(s, &b, LAYERS - 1, other));
    }
    CHECK(experts_status(s, &err) == QWEN3_ERR_FORMAT && strstr(err.text, b.path));
    FILE *file = fopen(b.path, "r+b");
    uint32_t nan = 0x7fc00000, word = word_at(end - 4);
    fseek(file, (long)end - 4, SEEK_SET);
    fwrite(&nan, 4, 1, file);
    fflush(file);
    experts_want(s, LAYERS - 1, &e, 1, NULL, 0, false);
    (void)experts_matrix(s, LAYERS - 1, e, EXPERT_DOWN, NULL);
    CHECK(experts_status(s, &err) == QWEN3_ERR_FORMAT && strstr(err.text, "NaN"));
    fseek(file, (long)end - 4, SEEK_SET);
    fwrite(&word, 4, 1, file);
    fclose(file);
    experts_want(s, LAYERS - 1, &e, 1, NULL, 0, false);
    CHECK(right(s, &b, LAYERS - 1, e) && experts_status(s, &err) == QWEN3_OK);
    experts_close(s);

    CHECK(!experts_open(&b.bank, experts_least_budget(&b.bank) - 1, 1, &err));
    CHECK(err.status == QWEN3_ERR_ARG);
    remove(b.path);
    CHECK(!experts_open(&b.bank, experts_least_budget(&b.bank), 1, &err));
    CHECK(err.status == QWEN3_ERR_IO && strstr(err.text, b.path));
}

/* Where what a layer computes with and what is rightly guessed take all room, no more is guessed. */
static void test_guesses_without_room(void) {
    bank_file b;
    new_bank(&b, true);
    expert_store *s = open_store(&b, experts_least_budget(&b.bank), 2);
    static const int32_t all[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    experts_want(s, 3, all, 8, NULL, 0, false); /* the largest layer */
    for (int i = 0; i < 8; i++) CHECK(right(s, &b, 3, all[i]));
    experts_want(s, 2, all, LAYERS * USED - 8, NULL, 0, false);
    experts_guess(s, 3, all, 9);
    for (int i = 0; i < LAYERS * USED - 8; i++) CHECK(right(s, &b, 2, all[i]));
    experts_want(s, 3, all, 8, NULL, 0, false);
    for (int i = 0; i < 8; i++) CHECK(experts_was_there(s, 3, all[i]));
    experts_close(s);
    remove(b.path);
}

/* A guess that cannot be read is an error only to those who then want it. */
static void test_failed_guess(void) {
    bank_file b;
    new_bank(&b, true);
    expert_store *s = open_store(&b, experts_least_budget(&b.bank), 1);
    const expert_extent *last = &b.extents[LAYERS * EXPERT_PARTS - 1];
    CHECK(truncate(b.path, (off_t)(last->offset + EXPERTS * last->bytes - 4)) == 0);
    int32_t e = EXPERTS - 1, other = 0;
    qwen3_error err = {0};
    for (int round = 0; round < 50; round++) { /* the guess is read or still waits */
        experts_want(s, 0, &other, 1, NULL, 0, false);
        CHECK(right(s, &b, 0, other));
        experts_guess(s, LAYERS - 1, &e, 1);
        if (round % 2) usleep(1000);
        CHECK(experts_status(s, &err) == QWEN3_OK);
        if (round % 4 < 2) continue;
        experts_want(s, LAYERS - 1, &e, 1, NULL, 0, false);
        (void)experts_matrix(s, LAYERS - 1, e, EXPERT_DOWN, NULL);
        CHECK(experts_status(s, &err) == QWEN3_ERR_FORMAT && strstr(err.text, b.path));
    }
    experts_close(s);
    remove(b.path);
}

/* A step that is cancelled leaves reads behind; what follows them is right. */
static void test_cancel(void) {
    bank_file b;
    new_bank(&b, true);
    expert_store *s = open_store(&b, experts_least_budget(&b.bank), 1);
    atomic_bool cancel = true;
    for (int step = 0; step < 100; step++) {
        int32_t experts[USED];
        distinct(experts, USED);
        experts_want(s, step % LAYERS, experts, USED, NULL, 0, false);
        (void)experts_matrix(s, step % LAYERS, experts[0], EXPERT_DOWN, &cancel);
        if (step % 3 == 0) CHECK(right(s, &b, step % LAYERS, experts[1]));
    }
    experts_close(s);
    for (int i = 0; i < 200; i++) { /* closed with reads under way */
        int32_t experts[USED];
        s = open_store(&b, experts_least_budget(&b.bank), 3);
        experts_want(s, 0, experts, distinct(experts, USED), NULL, 0, false);
        experts_close(s);
    }
    remove(b.path);
}

int main(void) {
    test_contents(true);
    test_contents(false);
    test_fixed_slots(true);
    test_fixed_slots(false);
    test_resident();
    test_policy();
    test_guesses();
    test_trial();
    test_half_life(8, true);
    test_half_life(1e-3f, false);
    test_failures();
    test_guesses_without_room();
    test_failed_guess();
    test_cancel();
    printf("experts: %s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}

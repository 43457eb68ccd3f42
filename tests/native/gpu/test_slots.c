/* Which experts keep their slots: against a simulation of the rule, word by word. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "gpu/slots.h"

enum { LAYERS = 4, EXPERTS = 24, USED = 5, KEYS = LAYERS * EXPERTS };

static int failures;

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition) && failures++ < 20)                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
    } while (0)

static uint32_t state = 1;

static int below(int n) {
    state = state * 1664525 + 1013904223;
    return (int)((state >> 8) % (uint32_t)n);
}

static int32_t slot_of[KEYS];

static expert_slots new_slots(int n) {
    expert_slots s;
    qwen3_error err;
    if (slots_init(&s, slot_of, LAYERS, EXPERTS, n, &err) != QWEN3_OK) abort();
    return s;
}

/* Low numbers are chosen more often than high ones. */
static void draw(int32_t *experts, int n) {
    for (int i = 0; i < n; i++) {
        int most = EXPERTS >> below(4);
        experts[i] = below(most < USED + 1 ? USED + 1 : most);
        for (int k = 0; k < i; k++)
            if (experts[k] == experts[i]) i--, k = n;
    }
}

/* Every expert is in the slot that is its, and no other. */
static void check_tables(const expert_slots *s) {
    int held = 0;
    for (int key = 0; key < KEYS; key++) {
        if (slot_of[key] < 0) continue;
        held++;
        CHECK(slot_of[key] < s->n_slots && s->owner[slot_of[key]] == key);
    }
    for (int i = 0; i < s->n_slots; i++) held -= s->owner[i] >= 0;
    CHECK(held == 0);
}

/* The rule: uses by token, each worth 2^-(age / half-life); -1: never used. */
static double uses[KEYS][1000];
static int n_uses[KEYS];

static double worth(int key, double token) {
    double sum = 0;
    for (int i = 0; i < n_uses[key]; i++) sum += exp2((uses[key][i] - token) / HEAT_HALF_LIFE);
    return n_uses[key] ? sum : -1;
}

/* Nobody of the simulated stays who is worth less than one who leaves. */
static void test_policy(int n_slots) {
    expert_slots s = new_slots(n_slots);
    slots_fill(&s);
    check_tables(&s);
    for (int i = 0; i < KEYS; i++) n_uses[i] = 0;
    for (int token = 0; token < 200; token++)
        for (int layer = 0; layer < LAYERS; layer++) {
            int32_t experts[USED], missing[USED];
            bool there[USED];
            draw(experts, USED);
            int n_missing = 0;
            for (int i = 0; i < USED; i++) {
                int key = layer * EXPERTS + experts[i];
                n_missing += !(there[i] = slot_of[key] >= 0);
                uses[key][n_uses[key]++] = token;
            }
            CHECK(slots_want(&s, layer, experts, USED, missing) == n_missing);
            for (int i = 0; i < n_missing; i++) {
                double own = worth(layer * EXPERTS + missing[i], token);
                if (i) CHECK(worth(layer * EXPERTS + missing[i - 1], token) >= own * 0.999);
                int before[KEYS];
                for (int key = 0; key < KEYS; key++) before[key] = slot_of[key];
                CHECK(slots_admit(&s, layer, missing[i]) == slot_of[layer * EXPERTS + missing[i]]);
                double left = INFINITY, stayed = INFINITY;
                for (int key = 0; key < KEYS; key++) {
                    bool wanted = false;
                    for (int k = 0; k < USED; k++) wanted |= key == layer * EXPERTS + experts[k];
                    if (before[key] < 0 || wanted) continue;
                    if (slot_of[key] < 0) left = worth(key, token);
                    else stayed = fmin(stayed, worth(key, token));
                }
                CHECK(left <= stayed * 1.001 || (left < 0 && stayed < 0));
            }
            for (int i = 0; i < USED; i++) CHECK(slot_of[layer * EXPERTS + experts[i]] >= 0);
            check_tables(&s);
        }
    slots_free(&s);
}

/* What is wanted stays even if there is nobody else to leave. */
static void test_too_few(void) {
    expert_slots s = new_slots(USED);
    int32_t experts[USED + 2] = {3, 1, 4, 15, 9, 2, 6}, missing[USED + 2];
    CHECK(slots_want(&s, 2, experts, USED + 2, missing) == USED + 2);
    for (int i = 0; i < USED; i++) CHECK(slots_admit(&s, 2, missing[i]) >= 0);
    CHECK(slots_admit(&s, 2, missing[USED]) == -1);
    CHECK(missing[0] == 1 && missing[1] == 2 && missing[USED + 1] == 15); /* all as often used */
    slots_drop(&s, 2, missing[1]);
    CHECK(slot_of[2 * EXPERTS + missing[1]] == -1);
    CHECK(slots_admit(&s, 2, missing[USED]) >= 0);
    check_tables(&s);
    slots_free(&s);
}

/* To each layer as many. */
static void test_fill(void) {
    expert_slots s = new_slots(4 * LAYERS + 2);
    slots_fill(&s);
    for (int key = 0; key < KEYS; key++)
        CHECK((slot_of[key] >= 0) == (key % EXPERTS < 4 + (key / EXPERTS < 2)));
    slots_free(&s);
}

int main(void) {
    test_fill();
    test_too_few();
    for (int n = USED; n < KEYS; n += 9) test_policy(n);
    return failures != 0;
}

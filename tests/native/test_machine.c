/* The number of threads, for machines that exist as files below a temporary directory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cpu/machine.h"

static int failures;

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            failures++;                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);  \
        }                                                                    \
    } while (0)

#ifdef __linux__

static char root[4096];

static void new_machine(void) {
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/qwen3-machine-XXXXXX", base ? base : P_tmpdir);
    if (!mkdtemp(root)) exit(1);
}

static void forget_machine(void) {
    char command[sizeof root + 16];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    CHECK(system(command) == 0);
}

static void put(const char *name, const char *text) {
    char path[2 * sizeof root];
    snprintf(path, sizeof path, "%s%s", root, name);
    for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = 0;
        mkdir(path, 0700);
    }
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0);
    if (f) fclose(f);
}

static void put_cpu(int cpu, const char *what, int value) {
    char name[128], text[16];
    snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu%d/%s", cpu, what);
    snprintf(text, sizeof text, "%d\n", value);
    put(name, text);
}

/* Threads of a process bound to CPUs [first, last). */
static int threads(int first, int last) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (int cpu = first; cpu < last; cpu++) CPU_SET(cpu, &cpus);
    return machine_threads_at(root, &cpus);
}

/* Two packages of two cores, two CPUs to a core. */
static void test_cores(void) {
    new_machine();
    CHECK(threads(0, 8) == 8); /* nothing is known but the CPUs */
    for (int cpu = 0; cpu < 8; cpu++) {
        put_cpu(cpu, "topology/physical_package_id", cpu / 4);
        put_cpu(cpu, "topology/core_id", cpu % 2);
    }
    CHECK(threads(0, 8) == 4);
    CHECK(threads(0, 4) == 2);
    CHECK(threads(1, 2) == 1);
    forget_machine();
}

/* Three fast cores of two CPUs, four slow ones. */
static void test_intel_hybrid(void) {
    new_machine();
    for (int cpu = 0; cpu < 10; cpu++) put_cpu(cpu, "topology/core_id", cpu < 6 ? cpu / 2 : cpu);
    put("/sys/devices/cpu_core/cpus", "0-3,4,5\n");
    CHECK(threads(0, 10) == 3);
    CHECK(threads(4, 10) == 1);
    CHECK(threads(6, 10) == 4); /* bound to the slow ones */
    put("/sys/devices/cpu_core/cpus", "nonsense\n");
    CHECK(threads(0, 10) == 7);
    forget_machine();
}

/* Four slow cores, three fast, one a little faster still. */
static void test_arm(void) {
    static const int capacity[8] = {446, 446, 446, 446, 871, 871, 871, 1024};
    new_machine();
    for (int cpu = 0; cpu < 8; cpu++) {
        put_cpu(cpu, "topology/core_id", cpu);
        put_cpu(cpu, "cpu_capacity", capacity[cpu]);
    }
    CHECK(threads(0, 8) == 4);
    CHECK(threads(0, 4) == 4);
    CHECK(threads(3, 6) == 2);
    forget_machine();
}

static void test_quota(void) {
    new_machine();
    put("/proc/self/cgroup", "3:cpuset:/elsewhere\n0::/user.slice/app.scope\n");
    CHECK(threads(0, 8) == 8);
    put("/sys/fs/cgroup/user.slice/app.scope/cpu.max", "max 100000\n");
    CHECK(threads(0, 8) == 8);
    put("/sys/fs/cgroup/user.slice/cpu.max", "250000 100000\n"); /* of the group above */
    CHECK(threads(0, 8) == 3);
    CHECK(threads(0, 2) == 2);
    put("/sys/fs/cgroup/user.slice/app.scope/cpu.max", "10000 100000\n");
    CHECK(threads(0, 8) == 1);
    put("/proc/self/cgroup", "0::/\n"); /* as a container sees itself */
    CHECK(threads(0, 8) == 8);
    put("/sys/fs/cgroup/cpu.max", "400000 100000\n");
    CHECK(threads(0, 8) == 4);
    forget_machine();
}

#endif

int main(void) {
#ifdef __linux__
    test_cores();
    test_intel_hybrid();
    test_arm();
    test_quota();
#endif
    CHECK(machine_cpus() >= 1);
    CHECK(machine_threads() >= 1 && machine_threads() <= machine_cpus());
    if (!failures) puts("machine: ok");
    return failures != 0;
}

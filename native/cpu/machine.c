/* machine.c - see machine.h. */
#include "machine.h"

#ifdef __APPLE__

#include <stddef.h>
#include <sys/sysctl.h>

static int sysctl_int(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value > 0 ? value : 0;
}

int machine_cpus(void) {
    int n = sysctl_int("hw.logicalcpu");
    return n ? n : 1;
}

int machine_threads(void) {
    int n = sysctl_int("hw.perflevel0.physicalcpu"); /* not on Intel */
    if (!n) n = sysctl_int("hw.physicalcpu");
    return n ? n : 1;
}

#else

#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Scans the file root + name. False: there is no such file, or it says something else. */
static bool scan(const char *root, const char *name, const char *format, int n_values, ...) {
    char path[4096 + 256];
    if (snprintf(path, sizeof path, "%s%s", root, name) >= (int)sizeof path) return false;
    FILE *f = fopen(path, "re");
    if (!f) return false;
    va_list values;
    va_start(values, n_values);
    bool found = vfscanf(f, format, values) == n_values;
    va_end(values);
    fclose(f);
    return found;
}

/* A number that the system knows of a cpu, -1 when it does not tell. */
static int of_cpu(const char *root, int cpu, const char *what) {
    char name[96];
    int value;
    snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu%d/%s", cpu, what);
    return scan(root, name, "%d", 1, &value) ? value : -1;
}

/* ---- fast and slow cores ---------------------------------------------------- */

/* Hybrids of Intel list their fast CPUs: "0-7,16". */
static bool listed_fast(const char *root, cpu_set_t *fast) {
    char list[1024];
    if (!scan(root, "/sys/devices/cpu_core/cpus", "%1023s", 1, list)) return false;
    CPU_ZERO(fast);
    for (char *at = list; *at;) {
        int first, last, used;
        if (sscanf(at, "%d%n", &first, &used) != 1) return false;
        at += used;
        last = first;
        if (*at == '-') {
            if (sscanf(++at, "%d%n", &last, &used) != 1) return false;
            at += used;
        }
        if (*at == ',') at++;
        for (int cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++) CPU_SET(cpu, fast);
    }
    return true;
}

/* ARM gives each CPU a capacity, of which 1024 is the most. Slow cores have about half. */
static void capable(const char *root, const cpu_set_t *cpus, cpu_set_t *fast) {
    int capacity[CPU_SETSIZE], most = 0;
    CPU_ZERO(fast);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        capacity[cpu] = CPU_ISSET(cpu, cpus) ? of_cpu(root, cpu, "cpu_capacity") : 0;
        if (capacity[cpu] > most) most = capacity[cpu];
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, cpus) && capacity[cpu] * 3 >= most * 2) CPU_SET(cpu, fast);
}

/* Distinct (package, core) pairs among the CPUs; 0 when unknown. */
static int physical_cores(const char *root, const cpu_set_t *cpus) {
    struct { int package, core; } seen[CPU_SETSIZE];
    int n = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, cpus)) continue;
        int package = of_cpu(root, cpu, "topology/physical_package_id"), i = 0;
        int core = of_cpu(root, cpu, "topology/core_id");
        if (core < 0) return 0;
        while (i < n && (seen[i].package != package || seen[i].core != core)) i++;
        if (i == n) {
            seen[n].package = package;
            seen[n++].core = core;
        }
    }
    return n;
}

/* ---- the cpu quota ---------------------------------------------------------- */

/* The path of this process in the tree of control groups, "" for the root. */
static void own_cgroup(const char *root, char *path, size_t size) {
    char file[4096], line[4096];
    *path = 0;
    snprintf(file, sizeof file, "%s/proc/self/cgroup", root);
    FILE *f = fopen(file, "re");
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "0::", 3) != 0) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(path, size, "%s", strcmp(line + 3, "/") == 0 ? "" : line + 3);
    }
    if (f) fclose(f);
}

/* The CPUs that the group and those above it allow, rounded up; INT_MAX without a quota. */
static int quota(const char *root) {
    char path[4096], name[sizeof path + 64];
    int least = INT_MAX;
    own_cgroup(root, path, sizeof path);
    for (;;) {
        long long time, period; /* "max 100000" says that there is none */
        snprintf(name, sizeof name, "/sys/fs/cgroup%s/cpu.max", path);
        if (scan(root, name, "%lld %lld", 2, &time, &period) && time > 0 && period > 0 &&
            time / period < least)
            least = (int)((time + period - 1) / period);
        char *up = strrchr(path, '/');
        if (!up) return least;
        *up = 0;
    }
}

/* ---- together --------------------------------------------------------------- */

int machine_threads_at(const char *root, const cpu_set_t *cpus) {
    cpu_set_t fast;
    if (listed_fast(root, &fast))
        CPU_AND(&fast, &fast, cpus);
    else
        capable(root, cpus, &fast);
    if (CPU_COUNT(&fast) == 0) fast = *cpus; /* bound to the slow ones */
    int n = physical_cores(root, &fast), most = quota(root);
    if (!n) n = CPU_COUNT(&fast);
    return n < most ? n : most;
}

int machine_cpus(void) {
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return CPU_COUNT(&cpus);
    long n = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than the set holds */
    return n > 0 ? (int)n : 1;
}

int machine_threads(void) {
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return machine_threads_at("", &cpus);
    int n = machine_cpus(), most = quota("");
    return n < most ? n : most;
}

#endif

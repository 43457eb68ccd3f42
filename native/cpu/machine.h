/* machine.h - the CPUs of this machine that the process may use. */
#ifndef QWEN3_MACHINE_H
#define QWEN3_MACHINE_H

/* Logical CPUs; at least 1. */
int machine_cpus(void);

/* The threads to use: physical cores, of the fast kind where the system tells, within the cpu
 * quota of the process; at least 1. */
int machine_threads(void);

#ifdef __linux__
#include <sched.h>

/* The same for these CPUs, by the /sys and /proc below root. */
int machine_threads_at(const char *root, const cpu_set_t *);
#endif

#endif

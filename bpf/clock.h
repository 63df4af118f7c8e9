/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How long a process has been running since the scheduler last took account of it. */
#ifndef PROCMON_CLOCK_H
#define PROCMON_CLOCK_H

#include "maps.h"

/*
 * How far the scheduler's clock (rq->clock) is ahead of CLOCK_BOOTTIME: the largest difference seen in this and in the
 * previous stretch of time. What rq->clock shows is from its last update, so every sight of it gives too little, by
 * that age; the largest is the freshest. The two clocks drift apart (NTP slews one of them), so old sights are dropped.
 */
#define CLOCK_STRETCH_NS 1000000000ULL
/* The scheduler updates its account of a running task at every tick, which come this often at least (HZ=100). */
#define TICK_NS 10000000LL

#ifndef PROCMON_BCC

static __u64 clock_stretch;
static __s64 clock_ahead_ns, previous_clock_ahead_ns;

/* Looks at the clock of the CPU on which `current_task` runs. Two CPUs may do so at once: one's sight may be lost. */
static __always_inline void see_clock(struct task_struct *current_task, __u64 boot_ns)
{
	__u64 stretch = boot_ns / CLOCK_STRETCH_NS;
	__s64 ahead_ns;

	if (!bpf_core_field_exists(struct cfs_rq, rq))
		return;
	ahead_ns = current_task->se.cfs_rq->rq->clock - boot_ns;
	if (stretch != clock_stretch) {
		previous_clock_ahead_ns = stretch == clock_stretch + 1 ? clock_ahead_ns : ahead_ns;
		clock_ahead_ns = ahead_ns;
		clock_stretch = stretch;
	} else if (ahead_ns > clock_ahead_ns) {
		clock_ahead_ns = ahead_ns;
	}
}

/*
 * For how long `current_task` has been running since the scheduler last added to its sum_exec_runtime. Without this, a
 * process that lives less than a tick would have used no time.
 */
static __always_inline __u64 running_ns(struct task_struct *current_task, __u64 boot_ns)
{
	__s64 ahead_ns = clock_ahead_ns, running;
	struct rq *rq;

	if (!bpf_core_field_exists(struct cfs_rq, rq))
		return 0;
	if (previous_clock_ahead_ns > ahead_ns)
		ahead_ns = previous_clock_ahead_ns;
	rq = current_task->se.cfs_rq->rq;
	/* exec_start is of clock_task, which leaves out what interrupts and other virtual machines took. */
	running = boot_ns + ahead_ns - (rq->clock - rq->clock_task) - current_task->se.exec_start;
	if (running < 0)
		return 0;
	return running < TICK_NS ? running : TICK_NS;
}

#else

/*
 * The headers do not tell what rq is. But whatever the scheduler adds to sum_exec_runtime it stamps with its clock, in
 * exec_start: of a process that runs, that is a sight of clock_task too, only an older one. As that leaves out what
 * interrupts took on this CPU, each CPU has its own.
 */
static __always_inline void see_clock(struct task_struct *current_task, __u64 boot_ns)
{
	__u64 stretch = boot_ns / CLOCK_STRETCH_NS;
	__s64 ahead_ns = FIELD(current_task, se.exec_start) - boot_ns;
	struct clock_sight *clock;
	__u32 zero = 0;

	clock = bpf_map_lookup_elem(MAP(clocks), &zero);
	if (!clock)
		return;
	if (stretch != clock->stretch) {
		clock->previous_ahead_ns = stretch == clock->stretch + 1 ? clock->ahead_ns : ahead_ns;
		clock->ahead_ns = ahead_ns;
		clock->stretch = stretch;
	} else if (ahead_ns > clock->ahead_ns) {
		clock->ahead_ns = ahead_ns;
	}
}

/* As above. */
static __always_inline __u64 running_ns(struct task_struct *current_task, __u64 boot_ns)
{
	struct clock_sight *clock;
	__s64 ahead_ns, running;
	__u32 zero = 0;

	clock = bpf_map_lookup_elem(MAP(clocks), &zero);
	if (!clock)
		return 0;
	ahead_ns = clock->ahead_ns;
	if (clock->previous_ahead_ns > ahead_ns)
		ahead_ns = clock->previous_ahead_ns;
	running = boot_ns + ahead_ns - FIELD(current_task, se.exec_start);
	if (running < 0)
		return 0;
	return running < TICK_NS ? running : TICK_NS;
}

#endif

#endif

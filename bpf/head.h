/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What all records begin with: counting them, waking their reader, clocks, and who the process is. */
#ifndef PROCMON_HEAD_H
#define PROCMON_HEAD_H

#include <bpf/bpf_core_read.h>

#include "maps.h"

/* 1 ms: a full ring must not turn into a wakeup for every record. */
#define WAKE_INTERVAL_NS 1000000

static __u64 last_wake_ns;

static __always_inline __u64 wake_flags(__u64 now_ns)
{
	if (bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) < config.wake_bytes)
		return BPF_RB_NO_WAKEUP;
	/*
	 * Two CPUs may both pass here: one wakeup too many does no harm. One too few could, if the reader took all and
	 * went to sleep again, and what is left of the ring after wake_bytes then filled within the interval: no memory
	 * is that fast. A reader that is awake needs none; epoll asks the ring itself before it sleeps.
	 */
	if ((__s64)(now_ns - last_wake_ns) < WAKE_INTERVAL_NS)
		return BPF_RB_NO_WAKEUP;
	last_wake_ns = now_ns;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * How far the scheduler's clock (rq->clock) is ahead of CLOCK_BOOTTIME: the largest difference seen in this and in the
 * previous stretch of time. What rq->clock shows is from its last update, so every sight of it gives too little, by
 * that age; the largest is the freshest. The two clocks drift apart (NTP slews one of them), so old sights are dropped.
 */
#define CLOCK_STRETCH_NS 1000000000ULL
/* The scheduler updates its account of a running task at every tick, which come this often at least (HZ=100). */
#define TICK_NS 10000000LL

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

static __always_inline struct procmon_counters *this_cpu_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

/* Atomic although the counter is this CPU's own: a run may be preempted between reading and writing. */
static __always_inline void count(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

static __always_inline __u32 pid_number(struct pid *pid, bool innermost)
{
	__u32 level = 0;
	__s32 number = 0;

	if (!pid)
		return 0;
	if (innermost)
		level = BPF_CORE_READ(pid, level);
	bpf_core_read(&number, sizeof(number),
		      (char *)pid + bpf_core_field_offset(struct pid, numbers) +
			      level * bpf_core_type_size(struct upid) + bpf_core_field_offset(struct upid, nr));
	return number;
}

/* Fills all of the head but the cgroup. `task` may be any thread of the process. */
static __always_inline void fill_task(struct procmon_task *out, struct task_struct *task, __u32 kind)
{
	struct task_struct *leader = task->group_leader;
	struct task_struct *parent = leader->real_parent;
	struct signal_struct *signal = task->signal;
	const struct cred *cred = task->real_cred;
	__u32 facts = 0, unread = 0;

	out->kind = kind;
	out->version = PROCMON_WIRE_VERSION;
	out->time_ns = bpf_ktime_get_boot_ns();
	out->start_ns = leader->start_boottime;
	/* Every thread was cloned from one that runs the same program, so any thread's generation is the process's. */
	out->generation = task->self_exec_id;
	out->cgroup_id = 0;
	out->pid = task->tgid;

	out->parent_pid = parent->tgid;
	out->parent_start_ns = parent->group_leader->start_boottime;
	/*
	 * A fork's parent runs what it runs now. Later the parent may have exec'd, or have died and been replaced by a
	 * reaper; the kernel keeps the generation of the fork. (With CLONE_PARENT that is the generation when the
	 * *sibling* was forked, so the record of the fork takes precedence in the lineage.)
	 */
	out->parent_generation = kind == PROCMON_FORK ? parent->self_exec_id : leader->parent_exec_id;
	if (parent->flags & PF_KTHREAD)
		facts |= PROCMON_FACT_PARENT_KERNEL_THREAD;
	if (task->flags & PF_KTHREAD)
		facts |= PROCMON_FACT_KERNEL_THREAD;

	out->vpid = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_TGID]), true);
	if (!out->vpid)
		unread |= PROCMON_FIELD_VPID;
	out->session_id = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_SID]), false);
	if (BPF_CORE_READ(signal, tty))
		facts |= PROCMON_FACT_TTY;

	out->uid = cred->uid.val;
	out->gid = cred->gid.val;
	out->euid = cred->euid.val;
	out->egid = cred->egid.val;
	if (bpf_core_field_exists(task->loginuid)) {
		out->auid = BPF_CORE_READ(task, loginuid.val);
	} else {
		out->auid = (__u32)-1;
		unread |= PROCMON_FIELD_AUID;
	}
	bpf_probe_read_kernel(out->comm, sizeof(out->comm), task->comm);

	out->facts = facts;
	out->unread = unread;
	out->cut = 0;
}

#endif

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What all records begin with: counting them, and who the process is. */
#ifndef PROCMON_HEAD_H
#define PROCMON_HEAD_H

#include "maps.h"

static __always_inline struct procmon_counters *this_cpu_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(counters), &zero);
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
	struct task_struct *leader = FIELD(task, group_leader);
	struct task_struct *parent = FIELD(leader, real_parent);
	struct signal_struct *signal = FIELD(task, signal);
	const struct cred *cred = FIELD(task, real_cred);
	__u32 facts = 0, unread = 0;

	out->kind = kind;
	out->version = PROCMON_WIRE_VERSION;
	out->time_ns = bpf_ktime_get_boot_ns();
	out->start_ns = FIELD(leader, start_boottime);
	/* Every thread was cloned from one that runs the same program, so any thread's generation is the process's. */
	out->generation = FIELD(task, self_exec_id);
	out->cgroup_id = 0;
	out->pid = FIELD(task, tgid);

	out->parent_pid = FIELD(parent, tgid);
	out->parent_start_ns = FIELD(FIELD(parent, group_leader), start_boottime);
	/*
	 * A fork's parent runs what it runs now. Later the parent may have exec'd, or have died and been replaced by a
	 * reaper; the kernel keeps the generation of the fork. (With CLONE_PARENT that is the generation when the
	 * *sibling* was forked, so the record of the fork takes precedence in the lineage.)
	 */
	out->parent_generation = kind == PROCMON_FORK ? FIELD(parent, self_exec_id) : FIELD(leader, parent_exec_id);
	if (FIELD(parent, flags) & PF_KTHREAD)
		facts |= PROCMON_FACT_PARENT_KERNEL_THREAD;
	if (FIELD(task, flags) & PF_KTHREAD)
		facts |= PROCMON_FACT_KERNEL_THREAD;

	out->vpid = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_TGID]), true);
	if (!out->vpid)
		unread |= PROCMON_FIELD_VPID;
	out->session_id = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_SID]), false);
	if (BPF_CORE_READ(signal, tty))
		facts |= PROCMON_FACT_TTY;

	out->uid = FIELD(cred, uid.val);
	out->gid = FIELD(cred, gid.val);
	out->euid = FIELD(cred, euid.val);
	out->egid = FIELD(cred, egid.val);
	if (!read_auid(task, &out->auid)) {
		out->auid = (__u32)-1;
		unread |= PROCMON_FIELD_AUID;
	}
	bpf_probe_read_kernel(out->comm, sizeof(out->comm), task->comm);

	out->facts = facts;
	out->unread = unread;
	out->cut = 0;
}

#endif

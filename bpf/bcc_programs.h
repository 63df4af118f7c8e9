/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The programs by BCC: three raw tracepoints, whose arguments are those of core_programs.h; and one that the agent runs
 * by itself (BPF_PROG_TEST_RUN) for each process that it asks about, in place of the iterator, which needs BTF.
 *
 * BCC takes functions in sections of this name for programs.
 */
#ifndef PROCMON_BCC_PROGRAMS_H
#define PROCMON_BCC_PROGRAMS_H

#define PROGRAM(name) __attribute__((section(".bpf.fn." #name), used))

PROGRAM(on_exec) int on_exec(void *context)
{
	__u64 *arguments = context;

	return tell_exec(context, (void *)arguments[0], (void *)arguments[2]);
}

PROGRAM(on_fork) int on_fork(void *context)
{
	__u64 *arguments = context;

	return tell_fork(context, (void *)arguments[0], (void *)arguments[1]);
}

/* From 6.16 on: before, the tracepoint has no second argument, and the kernel does not let this be attached. */
PROGRAM(on_exit) int on_exit(void *context)
{
	__u64 *arguments = context;
	struct task_struct *task = (void *)arguments[0];

	if (FIELD(task, flags) & PF_KTHREAD || !(__u8)arguments[1])
		return 0;
	return tell_exit(context, task);
}

PROGRAM(on_exit_by_threads) int on_exit_by_threads(void *context)
{
	__u64 *arguments = context;
	struct task_struct *task = (void *)arguments[0];

	if (FIELD(task, flags) & PF_KTHREAD || !last_thread(task) || !first_to_tell(task))
		return 0;
	return tell_exit(context, task);
}

/* More than a tree of all pids is high: 22 bits, 6 in each node. */
#define TREE_HEIGHT_MAX 6

/* lib/xarray.c, xas_load(): what stands at `index` in the tree under `entry`. NULL if there is nothing. */
static __always_inline void *load(void *entry, unsigned long index)
{
	struct xa_node *node;
	unsigned long at;
	__u8 shift;
	int i;

	for (i = 0; i < TREE_HEIGHT_MAX; i++) {
		at = (unsigned long)entry;
		/* include/linux/xarray.h, xa_is_node() */
		if ((at & 3) != 2 || at <= 4096)
			break;
		node = (struct xa_node *)(at - 2);
		shift = FIELD(node, shift);
		/* Only the topmost node may be too low for it. */
		if (shift > 60 || (!i && index >> shift > XA_CHUNK_MASK))
			return NULL;
		if (bpf_probe_read_kernel(&entry, sizeof(entry), &node->slots[(index >> shift) & XA_CHUNK_MASK]))
			return NULL;
	}
	return (unsigned long)entry & 3 ? NULL : entry;
}

/*
 * The process whose pid is the first argument, as a record in the map `answer`: returns its length, 0 if no such process
 * runs. In the initial pid namespace, whatever the agent's own is. RCU keeps the task while this runs.
 */
PROGRAM(on_task) int on_task(void *context)
{
	__u32 number = *(__u64 *)context, zero = 0, bytes;
	struct task_struct *task = (void *)bpf_get_current_task();
	struct buffer *buffer;
	struct hlist_node *link;
	struct pid *pid;

	/* A process's first number is that of the initial namespace. */
	pid = load(FIELD(FIELD(FIELD(task, thread_pid), numbers[0].ns), idr.idr_rt.xa_head), number);
	if (!pid || FIELD(pid, numbers[0].nr) != number)
		return 0;
	link = FIELD(pid, tasks[PIDTYPE_TGID].first);
	if (!link)
		return 0;
	task = (void *)link - bpf_core_field_offset(struct task_struct, pid_links[PIDTYPE_TGID]);
	if (!runs(task))
		return 0;
	buffer = bpf_map_lookup_elem(MAP(answer), &zero);
	if (!buffer)
		return 0;
	buffer->end = 0;
	bytes = fill_running(buffer, task);
	return bytes <= PROCMON_PATHS_MAX ? sizeof(buffer->exec) + bytes : 0;
}

#endif

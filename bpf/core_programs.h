/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The programs by CO-RE: three tracepoints whose arguments' types the verifier knows, and an iterator over tasks. */
#ifndef PROCMON_CORE_PROGRAMS_H
#define PROCMON_CORE_PROGRAMS_H

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * Since 7.0 a task can be preempted while it runs a tracepoint's programs (a46023d5616e, "tracing: Guard
 * __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast"). Whoever comes to the same program on that CPU meanwhile is
 * taken for a recursion, and the kernel leaves the program out. So there the loader attaches several of each, and the
 * first one that is not left out sees to the event. That a program disables preemption does not help: it would be
 * preempted where it enables it again, and still be the one that runs.
 *
 * A thread goes through its tracepoints one after the other. So it is enough to note for which thread one was here.
 */
#define SEEN_ENTRIES 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	/* The loader sets 1 where one program is enough. */
	__uint(max_entries, SEEN_ENTRIES);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

/*
 * Is this program the first one to see this event of the current thread? Two threads that share an entry and are here at
 * the same time, one of them preempted, may both find so twice; lineage drops what is told again.
 */
static __always_inline bool sees_first(enum procmon_kind kind)
{
	__u32 thread = bpf_get_current_pid_tgid(), key = thread % SEEN_ENTRIES;
	struct procmon_counters *counts;
	volatile __u64 *entry;
	bool first = true;

	if (CONFIG(programs) == 1)
		return true;
	entry = bpf_map_lookup_elem(MAP(seen), &key);
	if (!entry)
		return true;
	if (CONFIG(place) && *entry == thread) {
		first = false;
	} else {
		*entry = thread;
		counts = CONFIG(place) ? this_cpu_counters() : NULL;
		if (counts)
			count(&counts->left_out[kind]);
	}
	/* The thread's next event is another one. */
	if (CONFIG(place) == CONFIG(programs) - 1)
		*entry = 0;
	return first;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm)
{
	return sees_first(PROCMON_EXEC) ? tell_exec(ctx, task, bprm) : 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	return sees_first(PROCMON_FORK) ? tell_fork(ctx, parent, child) : 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	if (!sees_first(PROCMON_EXIT) || task->flags & PF_KTHREAD)
		return 0;
	if (bpf_core_type_exists(btf_trace_sched_process_exit)) {
		/* `group_dead`. Volatile, so that it is read here only: where there is none, the verifier does not let it be. */
		if (!*(volatile __u64 *)&ctx[1])
			return 0;
	} else if (!last_thread(task) || !first_to_tell(task)) {
		return 0;
	}
	return tell_exit(ctx, task);
}

SEC("iter/task")
int on_task(struct bpf_iter__task *context)
{
	struct seq_file *seq = context->meta->seq;
	struct task_struct *task = context->task;
	struct buffer *buffer;
	__u32 bytes;

	if (!task || !runs(task))
		return 0;
	buffer = take_buffer();
	/* read(2) then gives EAGAIN, or what there is so far: the reader tries again, and this task comes again. */
	if (!buffer)
		return 1;
	bytes = fill_running(buffer, task);
	if (bytes <= PROCMON_PATHS_MAX)
		bpf_seq_write(seq, &buffer->exec, sizeof(buffer->exec) + bytes);
	release(buffer);
	return 0;
}

#endif

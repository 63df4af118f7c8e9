/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The programs by CO-RE: three tracepoints whose arguments' types the verifier knows, and an iterator over tasks. */
#ifndef PROCMON_CORE_PROGRAMS_H
#define PROCMON_CORE_PROGRAMS_H

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm)
{
	return tell_exec(ctx, task, bprm);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	return tell_fork(ctx, parent, child);
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task, bool group_dead)
{
	if (task->flags & PF_KTHREAD)
		return 0;
	if (bpf_core_type_exists(btf_trace_sched_process_exit)) {
		if (!group_dead)
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

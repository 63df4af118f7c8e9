// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Every process's fork, exec and exit, as the records of procmon.h in one ring buffer; and a task iterator that tells
 * of the processes that are running.
 *
 * Only tp_btf tracepoints and a BPF iterator, so the one object serves every little-endian machine and every kernel
 * with BTF from 5.10 on. `task` and what is reached from it by typed pointers is read directly; what a typed pointer
 * cannot express (container_of, arrays, lists) is read with the probe_read helpers.
 */
#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "head.h"
#include "procmon.h"
#include "strings.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Most threads of a process that are looked at when it ends. */
#define THREADS_MAX 256

/*
 * Takes `buffer` if nobody else has it.
 *
 * Every user is in the count from before it looks until after it leaves, so whoever reads 1 is alone, and stays so:
 * all others read 2 or more and leave again. (Two that look at once may both leave; then both try the next buffer.)
 * An addition that does not give the old value is the one atomic instruction that 5.10 knows: no compare-and-exchange
 * before 5.12, 5ffa25502b5a ("bpf: Add instructions for atomic_[cmp]xchg").
 */
static __always_inline bool take(struct buffer *buffer)
{
	__sync_fetch_and_add(&buffer->users, 1);
	if (*(volatile __u64 *)&buffer->users == 1) {
		buffer->end = 0;
		return true;
	}
	__sync_fetch_and_add(&buffer->users, -1);
	return false;
}

static __always_inline void release(struct buffer *buffer)
{
	__sync_fetch_and_add(&buffer->users, -1);
}

static __always_inline struct buffer *take_buffer(void)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct buffer *buffer;
	__u32 key;

	/* BUFFERS_PER_CPU tries, written out. */
	key = cpu;
	buffer = bpf_map_lookup_elem(&buffers, &key);
	if (buffer && take(buffer))
		return buffer;
	key = cpu + config.cpus;
	buffer = bpf_map_lookup_elem(&buffers, &key);
	if (buffer && take(buffer))
		return buffer;
	return NULL;
}

/*
 * `prefix` is the first 8 bytes of a path: is it what execveat(2) makes of a file descriptor? fs/exec.c, alloc_bprm():
 * "/dev/fd/%d" or "/dev/fd/%d/%s".
 */
static __always_inline bool names_a_descriptor(const char *path)
{
	char prefix[8] = {};

	bpf_probe_read_kernel(prefix, sizeof(prefix), path);
	return prefix[0] == '/' && prefix[1] == 'd' && prefix[2] == 'e' && prefix[3] == 'v' && prefix[4] == '/' &&
	       prefix[5] == 'f' && prefix[6] == 'd' && prefix[7] == '/';
}

static __always_inline void fill_exec(struct buffer *buffer, struct task_struct *task, struct linux_binprm *bprm)
{
	struct procmon_exec *exec = &buffer->exec;
	struct mm_struct *mm = task->mm;
	struct fs_struct *fs = task->fs;
	const char *filename = bprm->filename, *interp = bprm->interp;
	struct file *exe_file;
	__u32 start;

	fill_task(&exec->task, task, PROCMON_EXEC);
	exec->args_count = bprm->argc;
	exec->args_kept_bytes = 0;
	exec->reserved = 0;

	append_string(buffer, filename, FILENAME_BYTES, PROCMON_FIELD_FILENAME);
	exec->filename_bytes = buffer->end;

	start = buffer->end;
	if (interp != filename)
		append_string(buffer, interp, INTERPRETER_BYTES, PROCMON_FIELD_INTERPRETER);
	exec->interpreter_bytes = buffer->end - start;

	start = buffer->end;
	exe_file = BPF_CORE_READ(mm, exe_file);
	if (exe_file && BPF_CORE_READ(exe_file, f_inode, i_nlink) == 0)
		exec->task.facts |= PROCMON_FACT_EXECUTABLE_DELETED;
	if (names_a_descriptor(filename))
		append_path(buffer, &exe_file->f_path, &fs->root, PROCMON_FIELD_EXECUTABLE);
	exec->executable_bytes = buffer->end - start;

	start = buffer->end;
	append_path(buffer, &fs->pwd, &fs->root, PROCMON_FIELD_CWD);
	if (unlinked(BPF_CORE_READ(fs, pwd.dentry)))
		exec->task.facts |= PROCMON_FACT_CWD_DELETED;
	exec->cwd_bytes = buffer->end - start;

	start = buffer->end;
	append_cgroup(buffer, task);
	exec->cgroup_bytes = buffer->end - start;

	append_arguments(buffer, mm);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm)
{
	struct procmon_counters *counts = this_cpu_counters();
	struct buffer *buffer;
	__u32 bytes;

	if (!counts)
		return 0;
	count(&counts->made[PROCMON_EXEC]);
	if (bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) > config.exec_room_bytes) {
		count(&counts->lost_ring_full[PROCMON_EXEC]);
		return 0;
	}
	buffer = take_buffer();
	if (!buffer) {
		count(&counts->lost_no_buffer[PROCMON_EXEC]);
		return 0;
	}
	fill_exec(buffer, task, bprm);
	bytes = buffer->end;
	if (bytes > sizeof(buffer->strings))
		bytes = sizeof(buffer->strings);
	if (bpf_ringbuf_output(&ring, &buffer->exec, sizeof(buffer->exec) + bytes,
			       wake_flags(buffer->exec.task.time_ns)))
		count(&counts->lost_ring_full[PROCMON_EXEC]);
	see_clock(task, buffer->exec.task.time_ns);
	release(buffer);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct procmon_counters *counts;
	struct procmon_fork *fork;

	/* A thread, or the kernel's own. */
	if (child->pid != child->tgid || child->flags & PF_KTHREAD)
		return 0;
	counts = this_cpu_counters();
	if (!counts)
		return 0;
	count(&counts->made[PROCMON_FORK]);
	if (bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) > config.fork_room_bytes)
		fork = NULL;
	else
		fork = bpf_ringbuf_reserve(&ring, sizeof(*fork), 0);
	if (!fork) {
		count(&counts->lost_ring_full[PROCMON_FORK]);
		return 0;
	}
	fill_task(&fork->task, child, PROCMON_FORK);
	if (child->mm == parent->mm)
		fork->task.facts |= PROCMON_FACT_VFORK;
	see_clock(parent, fork->task.time_ns);
	bpf_ringbuf_submit(fork, wake_flags(fork->task.time_ns));
	return 0;
}

static __always_inline struct task_struct *thread_of(struct list_head *node)
{
	return (void *)node - bpf_core_field_offset(struct task_struct, thread_node);
}

/*
 * Is `task`, which goes, the last thread of its process?
 *
 * Each thread takes itself off signal->live in do_exit() before it comes here, and none can be added once that is 0. So
 * the one that makes it 0 finds 0 here. But others that took themselves off before may find 0 too, if they come here
 * later; and too early to see the leader's exit code, which is set in between. Since 6.16 ("exit: move and extend
 * sched_process_exit() tracepoint") the kernel says who it was.
 *
 * Before, each thread gave up its mm between setting its exit code and coming here. So also ask for that, of all
 * threads: whoever gives it up last is sure to find it so, and everything is set by then. Another one that gave it up
 * just before may find the same (seen with threads that all leave at once): first_to_tell() decides between them.
 */
static __always_inline bool last_thread(struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct list_head *head = (void *)signal + bpf_core_field_offset(struct signal_struct, thread_head);
	struct list_head *node;
	int i;

	if (signal->live.counter != 0)
		return false;
	node = BPF_CORE_READ(signal, thread_head.next);
	for (i = 0; i < THREADS_MAX; i++) {
		if (!node || node == head)
			break;
		if (BPF_CORE_READ(thread_of(node), mm))
			return false;
		node = BPF_CORE_READ(node, next);
	}
	return true;
}

/* Of the threads that all take themselves for the last of their process, exactly one gets true. */
static __always_inline bool first_to_tell(struct task_struct *task)
{
	struct process_key key = { .start_ns = task->group_leader->start_boottime, .pid = task->tgid };
	__u32 one = 1;
	int error;

	/* An int: only its lower half holds before 6.4, d7ba4cc900bf ("bpf: return long from bpf_map_ops funcs"). */
	error = bpf_map_update_elem(&exits_told, &key, &one, BPF_NOEXIST);
	/* Should it not be told apart for another reason: better twice than never. The lineage drops the second. */
	return error != -EEXIST;
}

/* One reading of the sums of what all threads used: of those that were released, and of those on the list. */
static __always_inline void sum_usage(struct procmon_exit *exit, struct signal_struct *signal)
{
	struct list_head *head = (void *)signal + bpf_core_field_offset(struct signal_struct, thread_head);
	struct list_head *node = BPF_CORE_READ(signal, thread_head.next);
	bool io = bpf_core_field_exists(struct task_io_accounting, rchar);
	struct task_struct *thread;
	int i;

	exit->utime_ns = signal->utime;
	exit->stime_ns = signal->stime;
	exit->runtime_ns = signal->sum_sched_runtime;
	if (io) {
		exit->read_bytes = signal->ioac.rchar;
		exit->written_bytes = signal->ioac.wchar;
	}
	for (i = 0; i < THREADS_MAX; i++) {
		if (!node || node == head)
			return;
		thread = thread_of(node);
		exit->utime_ns += BPF_CORE_READ(thread, utime);
		exit->stime_ns += BPF_CORE_READ(thread, stime);
		exit->runtime_ns += BPF_CORE_READ(thread, se.sum_exec_runtime);
		if (io) {
			exit->read_bytes += BPF_CORE_READ(thread, ioac.rchar);
			exit->written_bytes += BPF_CORE_READ(thread, ioac.wchar);
		}
		node = BPF_CORE_READ(node, next);
	}
	exit->task.cut |= PROCMON_FIELD_USAGE_CPU | PROCMON_FIELD_USAGE_IO;
}

/* signal->stats_lock's sequence. It is the first member of all the types that this lock has had. */
static __always_inline __u32 stats_sequence(struct signal_struct *signal)
{
	__u32 sequence = 0;

	bpf_core_read(&sequence, sizeof(sequence),
		      (void *)signal + bpf_core_field_offset(struct signal_struct, stats_lock));
	return sequence;
}

static __always_inline void fill_usage(struct procmon_exit *exit, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	__u32 sequence;

	exit->max_rss_pages = signal->maxrss;
	exit->read_bytes = 0;
	exit->written_bytes = 0;
	if (!bpf_core_field_exists(struct task_io_accounting, rchar))
		exit->task.unread |= PROCMON_FIELD_USAGE_IO;
	/* kernel/exit.c, __exit_signal(): a thread goes from the list into the sums under this lock. */
	sequence = stats_sequence(signal);
	sum_usage(exit, signal);
	if (!(sequence & 1) && stats_sequence(signal) == sequence)
		return;
	/* One more try: more than that has not been seen to be needed. */
	sequence = stats_sequence(signal);
	sum_usage(exit, signal);
	if (sequence & 1 || stats_sequence(signal) != sequence)
		exit->task.cut |= PROCMON_FIELD_USAGE_CPU | PROCMON_FIELD_USAGE_IO;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task, bool group_dead)
{
	struct signal_struct *signal = task->signal;
	struct procmon_counters *counts;
	struct procmon_exit *exit;

	if (task->flags & PF_KTHREAD)
		return 0;
	if (bpf_core_type_exists(btf_trace_sched_process_exit)) {
		if (!group_dead)
			return 0;
	} else if (!last_thread(task) || !first_to_tell(task)) {
		return 0;
	}
	counts = this_cpu_counters();
	if (!counts)
		return 0;
	count(&counts->made[PROCMON_EXIT]);
	exit = bpf_ringbuf_reserve(&ring, sizeof(*exit), 0);
	if (!exit) {
		count(&counts->lost_ring_full[PROCMON_EXIT]);
		return 0;
	}
	fill_task(&exit->task, task, PROCMON_EXIT);
	exit->reserved = 0;
	/* kernel/exit.c, wait_task_zombie(): the group's code if the group was told to exit, else the leader's. */
	if (signal->flags & SIGNAL_GROUP_EXIT)
		exit->wait_status = signal->group_exit_code;
	else
		exit->wait_status = task->group_leader->exit_code;
	if (signal->oom_mm)
		exit->task.facts |= PROCMON_FACT_OOM_VICTIM;
	fill_usage(exit, task);
	see_clock(task, exit->task.time_ns);
	exit->runtime_ns += running_ns(task, exit->task.time_ns);
	bpf_ringbuf_submit(exit, wake_flags(exit->task.time_ns));
	return 0;
}

SEC("iter/task")
int on_task(struct bpf_iter__task *context)
{
	struct seq_file *seq = context->meta->seq;
	struct task_struct *task = context->task;
	struct buffer *buffer;
	__u32 bytes;

	/* Threads, and processes of which only the zombie is left. */
	if (!task || task->pid != task->tgid || task->signal->live.counter == 0)
		return 0;
	buffer = take_buffer();
	/* read(2) then gives EAGAIN, or what there is so far: the reader tries again, and this task comes again. */
	if (!buffer)
		return 1;
	fill_task(&buffer->exec.task, task, PROCMON_TASK);
	buffer->exec.args_bytes = 0;
	buffer->exec.args_count = 0;
	buffer->exec.filename_bytes = 0;
	buffer->exec.interpreter_bytes = 0;
	buffer->exec.executable_bytes = 0;
	buffer->exec.cwd_bytes = 0;
	buffer->exec.args_kept_bytes = 0;
	buffer->exec.reserved = 0;
	append_cgroup(buffer, task);
	bytes = buffer->end;
	buffer->exec.cgroup_bytes = bytes;
	if (bytes <= PROCMON_PATHS_MAX)
		bpf_seq_write(seq, &buffer->exec, sizeof(buffer->exec) + bytes);
	release(buffer);
	return 0;
}

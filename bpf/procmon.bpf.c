// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Every process's fork, exec and exit, as the records of procmon.h in one ring buffer; and a task iterator that tells
 * of the processes that are running.
 *
 * Only tp_btf tracepoints and a BPF iterator, so the one object serves every little-endian machine and every kernel
 * with BTF from 5.10 on. `task` and what is reached from it by typed pointers is read directly; what a typed pointer
 * cannot express (container_of, arrays, lists) is read with the probe_read helpers.
 */
#include "maps.h"

#include "clock.h"
#include "head.h"
#include "output.h"
#include "strings.h"

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

static __always_inline struct buffer *take_one(__u32 key)
{
	struct buffer *buffer = bpf_map_lookup_elem(MAP(buffers), &key);

	return buffer && take(buffer) ? buffer : NULL;
}

/* BUFFERS_PER_CPU_MAX tries, written out. There may be fewer buffers. */
static __always_inline struct buffer *take_buffer(void)
{
	__u32 cpu = bpf_get_smp_processor_id(), cpus = CONFIG(cpus);
	struct buffer *buffer;

	buffer = take_one(cpu);
	if (!buffer)
		buffer = take_one(cpu + cpus);
	if (!buffer)
		buffer = take_one(cpu + 2 * cpus);
	if (!buffer)
		buffer = take_one(cpu + 3 * cpus);
	return buffer;
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
	struct mm_struct *mm = FIELD(task, mm);
	struct fs_struct *fs = FIELD(task, fs);
	const char *filename = FIELD(bprm, filename), *interp = FIELD(bprm, interp);
	struct file *exe_file;
	__u32 start;

	fill_task(&exec->task, task, PROCMON_EXEC);
	exec->args_count = FIELD(bprm, argc);
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

static __always_inline int tell_exec(void *context, struct task_struct *task, struct linux_binprm *bprm)
{
	struct procmon_counters *counts = this_cpu_counters();
	struct buffer *buffer;
	__u32 bytes;

	if (!counts)
		return 0;
	count(&counts->made[PROCMON_EXEC]);
	if (!HAS_ROOM(CONFIG(exec_room_bytes))) {
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
	if (!output(context, &buffer->exec, sizeof(buffer->exec) + bytes, buffer->exec.task.time_ns))
		count(&counts->lost_ring_full[PROCMON_EXEC]);
	see_clock(task, buffer->exec.task.time_ns);
	release(buffer);
	return 0;
}

static __always_inline int tell_fork(void *context, struct task_struct *parent, struct task_struct *child)
{
	struct procmon_counters *counts;
	struct procmon_fork *fork;
	PLACE(struct procmon_fork, place);

	/* A thread, or the kernel's own. */
	if (FIELD(child, pid) != FIELD(child, tgid) || FIELD(child, flags) & PF_KTHREAD)
		return 0;
	counts = this_cpu_counters();
	if (!counts)
		return 0;
	count(&counts->made[PROCMON_FORK]);
	if (!HAS_ROOM(CONFIG(fork_room_bytes)))
		fork = NULL;
	else
		fork = reserve(&place, sizeof(*fork));
	if (!fork) {
		count(&counts->lost_ring_full[PROCMON_FORK]);
		return 0;
	}
	fill_task(&fork->task, child, PROCMON_FORK);
	if (FIELD(child, mm) == FIELD(parent, mm))
		fork->task.facts |= PROCMON_FACT_VFORK;
	see_clock(parent, fork->task.time_ns);
	if (!submit(context, fork, sizeof(*fork), fork->task.time_ns))
		count(&counts->lost_ring_full[PROCMON_FORK]);
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
	struct signal_struct *signal = FIELD(task, signal);
	struct list_head *head = (void *)signal + bpf_core_field_offset(struct signal_struct, thread_head);
	struct list_head *node;
	int i;

	if (FIELD(signal, live.counter) != 0)
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
	struct process_key key = {
		.start_ns = FIELD(FIELD(task, group_leader), start_boottime),
		.pid = FIELD(task, tgid),
	};
	__u32 one = 1;
	int error;

	/* An int: only its lower half holds before 6.4, d7ba4cc900bf ("bpf: return long from bpf_map_ops funcs"). */
	error = bpf_map_update_elem(MAP(exits_told), &key, &one, BPF_NOEXIST);
	/* Should it not be told apart for another reason: better twice than never. The lineage drops the second. */
	return error != -EEXIST;
}

/* One reading of the sums of what all threads used: of those that were released, and of those on the list. */
static __always_inline void sum_usage(struct procmon_exit *exit, struct signal_struct *signal)
{
	struct list_head *head = (void *)signal + bpf_core_field_offset(struct signal_struct, thread_head);
	struct list_head *node = BPF_CORE_READ(signal, thread_head.next);
	bool io = HAS_IO;
	struct task_struct *thread;
	int i;

	exit->utime_ns = FIELD(signal, utime);
	exit->stime_ns = FIELD(signal, stime);
	exit->runtime_ns = FIELD(signal, sum_sched_runtime);
	if (io) {
		exit->read_bytes = FIELD_IO(signal, rchar);
		exit->written_bytes = FIELD_IO(signal, wchar);
	}
	for (i = 0; i < THREADS_MAX; i++) {
		if (!node || node == head)
			return;
		thread = thread_of(node);
		exit->utime_ns += BPF_CORE_READ(thread, utime);
		exit->stime_ns += BPF_CORE_READ(thread, stime);
		exit->runtime_ns += BPF_CORE_READ(thread, se.sum_exec_runtime);
		if (io) {
			exit->read_bytes += BPF_CORE_READ_IO(thread, rchar);
			exit->written_bytes += BPF_CORE_READ_IO(thread, wchar);
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
	struct signal_struct *signal = FIELD(task, signal);
	__u32 sequence;

	exit->max_rss_pages = FIELD(signal, maxrss);
	exit->read_bytes = 0;
	exit->written_bytes = 0;
	if (!HAS_IO)
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

static __always_inline int tell_exit(void *context, struct task_struct *task)
{
	struct signal_struct *signal = FIELD(task, signal);
	struct procmon_counters *counts;
	struct procmon_exit *exit;
	PLACE(struct procmon_exit, place);

	counts = this_cpu_counters();
	if (!counts)
		return 0;
	count(&counts->made[PROCMON_EXIT]);
	exit = reserve(&place, sizeof(*exit));
	if (!exit) {
		count(&counts->lost_ring_full[PROCMON_EXIT]);
		return 0;
	}
	fill_task(&exit->task, task, PROCMON_EXIT);
	exit->reserved = 0;
	/* kernel/exit.c, wait_task_zombie(): the group's code if the group was told to exit, else the leader's. */
	if (FIELD(signal, flags) & SIGNAL_GROUP_EXIT)
		exit->wait_status = FIELD(signal, group_exit_code);
	else
		exit->wait_status = FIELD(FIELD(task, group_leader), exit_code);
	if (FIELD(signal, oom_mm))
		exit->task.facts |= PROCMON_FACT_OOM_VICTIM;
	fill_usage(exit, task);
	see_clock(task, exit->task.time_ns);
	exit->runtime_ns += running_ns(task, exit->task.time_ns);
	if (!submit(context, exit, sizeof(*exit), exit->task.time_ns))
		count(&counts->lost_ring_full[PROCMON_EXIT]);
	return 0;
}

/* Is it a process that runs? Else it is a thread, or of the process only the zombie is left. */
static __always_inline bool runs(struct task_struct *task)
{
	return FIELD(task, pid) == FIELD(task, tgid) && FIELD(FIELD(task, signal), live.counter) != 0;
}

/* Puts the record of a process that runs together. Returns the length of its strings. */
static __always_inline __u32 fill_running(struct buffer *buffer, struct task_struct *task)
{
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
	buffer->exec.cgroup_bytes = buffer->end;
	return buffer->exec.cgroup_bytes;
}

#ifdef PROCMON_BCC
#include "bcc_programs.h"
#else
#include "core_programs.h"
#endif

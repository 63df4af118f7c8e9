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

#include "procmon.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile struct procmon_config config = {
	.wake_bytes = 1024 * 1024,
	.args_max_bytes = PROCMON_ARGS_MAX,
	.cpus = 1,
};

/* 1 ms: a full ring must not turn into a wakeup for every record. */
#define WAKE_INTERVAL_NS 1000000
/* Longest walk of a path or of a process's threads. */
#define COMPONENTS_MAX 64
#define CGROUP_LEVELS_MAX 32
#define THREADS_MAX 256
/* NAME_MAX and its NUL. */
#define NAME_BYTES 256
#define PATH_BYTES 4096
/* BINPRM_BUF_SIZE */
#define INTERPRETER_BYTES 256

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 * 1024 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct procmon_counters);
} counters SEC(".maps");

/*
 * An exec record is put together here, because its length is only known at the end. A tracepoint's program may be
 * preempted on some kernels (PREEMPT_LAZY, 6.13 and later: elastic/quark#305), so a buffer that belongs to a CPU is not
 * enough: a run takes the first free one of two, and proves at the end that nobody else wrote into it.
 */
#define BUFFERS_PER_CPU 2

struct buffer {
	/* Who fills it: a value unique to the program run; 0: free. */
	__u64 owner;
	/*
	 * How many bytes of `strings` are filled. It is read back from here before each use and checked then, and never
	 * kept in a register: so the verifier forgets how it came about, and need not follow every combination of lengths.
	 */
	volatile __u32 end;
	__u32 padding;
	struct procmon_exec exec;
	char strings[PROCMON_PATHS_MAX + PROCMON_ARGS_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	/* The loader sets BUFFERS_PER_CPU times the number of possible CPUs. */
	__uint(max_entries, BUFFERS_PER_CPU);
	__type(key, __u32);
	__type(value, struct buffer);
} buffers SEC(".maps");

/* Keeps the types of the wire contract in the object's BTF, where the layout test looks for them. */
const struct procmon_fork *unused_fork __attribute__((unused));
const struct procmon_exit *unused_exit __attribute__((unused));
const enum procmon_field *unused_field __attribute__((unused));
const enum procmon_fact *unused_fact __attribute__((unused));
const enum procmon_kind *unused_kind __attribute__((unused));

static __u64 last_wake_ns;

static __always_inline __u64 wake_flags(__u64 now_ns)
{
	if (bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) < config.wake_bytes)
		return BPF_RB_NO_WAKEUP;
	/* Two CPUs may both pass here: one wakeup too many does no harm. */
	if (now_ns - last_wake_ns < WAKE_INTERVAL_NS)
		return BPF_RB_NO_WAKEUP;
	last_wake_ns = now_ns;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline struct procmon_counters *this_cpu_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
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

/* Appends `length` bytes of a name and a '/'. False if they do not fit or could not be read. */
static __always_inline bool append_name(struct buffer *buffer, const void *name, __u32 length)
{
	__u32 end = buffer->end;

	if (end > PROCMON_PATHS_MAX - NAME_BYTES - 1)
		return false;
	length &= NAME_BYTES - 1;
	if (bpf_probe_read_kernel(&buffer->strings[end], length, name))
		return false;
	buffer->strings[end + length] = '/';
	buffer->end = end + length + 1;
	return true;
}

/*
 * Appends the components of a path, leaf first, up to the task's root (or to the root of its mount namespace, where the
 * path is outside of the task's root). Sets `field` in the head's cut or unread.
 */
static __always_inline void append_path(struct buffer *buffer, struct path *path, struct path *root, __u32 field)
{
	struct dentry *dentry = BPF_CORE_READ(path, dentry);
	struct vfsmount *vfsmnt = BPF_CORE_READ(path, mnt);
	struct dentry *root_dentry = BPF_CORE_READ(root, dentry);
	struct vfsmount *root_vfsmnt = BPF_CORE_READ(root, mnt);
	struct dentry *parent;
	struct mount *mount, *mount_parent;
	struct qstr name;
	int i;

	for (i = 0; i < COMPONENTS_MAX; i++) {
		if (!dentry) {
			buffer->exec.task.unread |= field;
			return;
		}
		if (dentry == root_dentry && vfsmnt == root_vfsmnt)
			return;
		if (dentry == BPF_CORE_READ(vfsmnt, mnt_root)) {
			mount = (void *)vfsmnt - bpf_core_field_offset(struct mount, mnt);
			mount_parent = BPF_CORE_READ(mount, mnt_parent);
			if (mount_parent == mount)
				return;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			vfsmnt = (void *)mount_parent + bpf_core_field_offset(struct mount, mnt);
			continue;
		}
		bpf_core_read(&name.len, sizeof(name.len), &dentry->d_name.len);
		bpf_core_read(&name.name, sizeof(name.name), &dentry->d_name.name);
		if (!append_name(buffer, name.name, name.len)) {
			buffer->exec.task.cut |= field;
			return;
		}
		parent = BPF_CORE_READ(dentry, d_parent);
		/* A pseudo file (memfd) has no directory. */
		if (parent == dentry)
			return;
		dentry = parent;
	}
	buffer->exec.task.cut |= field;
}

/* fs/dcache.h: d_unlinked() */
static __always_inline bool unlinked(struct dentry *dentry)
{
	return !BPF_CORE_READ(dentry, d_hash.pprev) && BPF_CORE_READ(dentry, d_parent) != dentry;
}

static __always_inline struct cgroup *v1_cgroup(struct css_set *set, __u32 subsystem)
{
	struct cgroup_subsys_state *state = NULL;

	bpf_core_read(&state, sizeof(state),
		      (char *)set + bpf_core_field_offset(struct css_set, subsys) + subsystem * sizeof(void *));
	return BPF_CORE_READ(state, cgroup);
}

/* Takes the v1 hierarchy of `subsystem` if this kernel has it and the task is not in its root there. */
#define TRY_V1(subsystem)                                                                          \
	if (!level && bpf_core_enum_value_exists(enum cgroup_subsys_id, subsystem)) {              \
		cgroup = v1_cgroup(set, bpf_core_enum_value(enum cgroup_subsys_id, subsystem));    \
		level = BPF_CORE_READ(cgroup, level);                                              \
		if (level)                                                                         \
			head->facts |= PROCMON_FACT_CGROUP_V1;                                     \
	}

/*
 * The unified hierarchy's path; on v1 and hybrid hosts, where that is absent or unused (its root), the first of the
 * v1 controllers' in which the task is not in the root.
 */
static __always_inline void append_cgroup(struct buffer *buffer, struct task_struct *task)
{
	struct procmon_task *head = &buffer->exec.task;
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct cgroup *unified = BPF_CORE_READ(set, dfl_cgrp), *cgroup = unified;
	struct kernfs_node *node, *parent;
	__u32 end;
	long length;
	int i, level;

	level = BPF_CORE_READ(cgroup, level);
	TRY_V1(memory_cgrp_id)
	TRY_V1(pids_cgrp_id)
	TRY_V1(cpu_cgrp_id)
	TRY_V1(devices_cgrp_id)
	TRY_V1(freezer_cgrp_id)
	if (!level)
		cgroup = unified;

	node = BPF_CORE_READ(cgroup, kn);
	if (!node) {
		head->unread |= PROCMON_FIELD_CGROUP;
		return;
	}
	head->cgroup_id = BPF_CORE_READ(node, id);
	for (i = 0; i < CGROUP_LEVELS_MAX; i++) {
		if (bpf_core_field_exists(node->parent))
			parent = BPF_CORE_READ(node, parent);
		else
			parent = BPF_CORE_READ((struct kernfs_node___rcu *)node, __parent);
		if (!parent)
			return;
		end = buffer->end;
		if (end > PROCMON_PATHS_MAX - NAME_BYTES)
			break;
		length = bpf_probe_read_kernel_str(&buffer->strings[end], NAME_BYTES, BPF_CORE_READ(node, name));
		if (length <= 0 || length > NAME_BYTES) {
			head->unread |= PROCMON_FIELD_CGROUP;
			return;
		}
		/* In place of the NUL. */
		buffer->strings[end + length - 1] = '/';
		buffer->end = end + length;
		node = parent;
	}
	head->cut |= PROCMON_FIELD_CGROUP;
}

/* Appends a NUL-terminated string of the kernel, at most `size` bytes with its NUL, which is not kept. */
static __always_inline void append_string(struct buffer *buffer, const char *string, __u32 size, __u32 field)
{
	__u32 end = buffer->end;
	long length;

	if (end > PROCMON_PATHS_MAX)
		return;
	length = bpf_probe_read_kernel_str(&buffer->strings[end], size, string);
	if (length <= 0 || length > size) {
		buffer->exec.task.unread |= field;
		return;
	}
	if (length == size)
		buffer->exec.task.cut |= field;
	buffer->end = end + length - 1;
}

static __always_inline void append_arguments(struct buffer *buffer, struct mm_struct *mm)
{
	struct procmon_exec *exec = &buffer->exec;
	unsigned long from = mm->arg_start;
	__u64 bytes = mm->arg_end - from;
	__u64 in_page = 4096 - (from & 4095);
	__u32 end = buffer->end;

	exec->args_bytes = bytes;
	if (end > PROCMON_PATHS_MAX)
		return;
	if (bytes > config.args_max_bytes) {
		bytes = config.args_max_bytes;
		exec->task.cut |= PROCMON_FIELD_ARGS;
	}
	if (bytes > PROCMON_ARGS_MAX)
		bytes = PROCMON_ARGS_MAX;
	if (bpf_probe_read_user(&buffer->strings[end], bytes, (void *)from)) {
		/* A page was not there. The first one mostly is: keep what it holds. */
		if (bytes > in_page) {
			bytes = in_page;
			exec->task.cut |= PROCMON_FIELD_ARGS;
		}
		if (bytes > 4096 || bpf_probe_read_user(&buffer->strings[end], bytes, (void *)from)) {
			exec->task.unread |= PROCMON_FIELD_ARGS;
			return;
		}
	}
	exec->args_kept_bytes = bytes;
	buffer->end = end + bytes;
}

static __always_inline struct buffer *take_buffer(__u64 owner)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct buffer *buffer;
	__u32 key;

	/* BUFFERS_PER_CPU tries, written out. */
	key = cpu;
	buffer = bpf_map_lookup_elem(&buffers, &key);
	if (buffer && buffer->owner == 0)
		goto taken;
	key = cpu + config.cpus;
	buffer = bpf_map_lookup_elem(&buffers, &key);
	if (buffer && buffer->owner == 0)
		goto taken;
	return NULL;
taken:
	buffer->owner = owner;
	buffer->end = 0;
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
	struct mm_struct *mm = task->mm;
	struct fs_struct *fs = task->fs;
	const char *filename = bprm->filename, *interp = bprm->interp;
	struct file *exe_file;
	__u32 start;

	fill_task(&exec->task, task, PROCMON_EXEC);
	exec->args_count = bprm->argc;
	exec->args_kept_bytes = 0;
	exec->reserved = 0;

	append_string(buffer, filename, PATH_BYTES, PROCMON_FIELD_FILENAME);
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
	__u64 owner;
	__u32 bytes;

	if (!counts)
		return 0;
	counts->made[PROCMON_EXEC] += 1;

	/* No two runs at one time are for the same thread, so its id tells them apart. */
	owner = bpf_get_current_pid_tgid();
	buffer = take_buffer(owner);
	if (!buffer) {
		counts->lost_no_buffer[PROCMON_EXEC] += 1;
		return 0;
	}
	fill_exec(buffer, task, bprm);
	if (buffer->owner != owner) {
		counts->lost_no_buffer[PROCMON_EXEC] += 1;
		return 0;
	}
	bytes = buffer->end;
	if (bytes > sizeof(buffer->strings))
		bytes = sizeof(buffer->strings);
	if (bpf_ringbuf_output(&ring, &buffer->exec, sizeof(buffer->exec) + bytes,
			       wake_flags(buffer->exec.task.time_ns)))
		counts->lost_ring_full[PROCMON_EXEC] += 1;
	buffer->owner = 0;
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
	counts->made[PROCMON_FORK] += 1;
	fork = bpf_ringbuf_reserve(&ring, sizeof(*fork), 0);
	if (!fork) {
		counts->lost_ring_full[PROCMON_FORK] += 1;
		return 0;
	}
	fill_task(&fork->task, child, PROCMON_FORK);
	if (child->mm == parent->mm)
		fork->task.facts |= PROCMON_FACT_VFORK;
	bpf_ringbuf_submit(fork, wake_flags(fork->task.time_ns));
	return 0;
}

/*
 * Sums of what the process's threads used: signal_struct has those that were released, the thread list the others.
 * Between the two a thread that is being released right now may be missed.
 */
static __always_inline void fill_usage(struct procmon_exit *exit, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct list_head *head = (void *)signal + bpf_core_field_offset(struct signal_struct, thread_head);
	struct list_head *node = BPF_CORE_READ(signal, thread_head.next);
	bool io = bpf_core_field_exists(struct task_io_accounting, rchar);
	struct task_struct *thread;
	int i;

	exit->utime_ns = signal->utime;
	exit->stime_ns = signal->stime;
	exit->runtime_ns = signal->sum_sched_runtime;
	exit->max_rss_pages = signal->maxrss;
	exit->read_bytes = 0;
	exit->written_bytes = 0;
	if (io) {
		exit->read_bytes = BPF_CORE_READ(signal, ioac.rchar);
		exit->written_bytes = BPF_CORE_READ(signal, ioac.wchar);
	} else {
		exit->task.unread |= PROCMON_FIELD_USAGE_IO;
	}
	for (i = 0; i < THREADS_MAX; i++) {
		if (!node || node == head)
			return;
		thread = (void *)node - bpf_core_field_offset(struct task_struct, thread_node);
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

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct procmon_counters *counts;
	struct procmon_exit *exit;

	/*
	 * The process is over when its last thread goes. Two threads that go at the same time may both find 0 here and
	 * tell of one exit twice; the lineage knows the process by its identity and drops the second.
	 */
	if (signal->live.counter != 0 || task->flags & PF_KTHREAD)
		return 0;
	counts = this_cpu_counters();
	if (!counts)
		return 0;
	counts->made[PROCMON_EXIT] += 1;
	exit = bpf_ringbuf_reserve(&ring, sizeof(*exit), 0);
	if (!exit) {
		counts->lost_ring_full[PROCMON_EXIT] += 1;
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
	__u64 owner;

	/* Threads, and processes of which only the zombie is left. */
	if (!task || task->pid != task->tgid || task->signal->live.counter == 0)
		return 0;
	/* This runs in the agent's own thread, which cannot exec at the same time: any free buffer will do. */
	owner = bpf_get_current_pid_tgid();
	buffer = take_buffer(owner);
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
	if (bytes <= PROCMON_PATHS_MAX && buffer->owner == owner)
		bpf_seq_write(seq, &buffer->exec, sizeof(buffer->exec) + bytes);
	buffer->owner = 0;
	return 0;
}

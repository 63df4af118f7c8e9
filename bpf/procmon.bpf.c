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
	.exec_room_bytes = (__u64)-1,
	.fork_room_bytes = (__u64)-1,
};

/* 1 ms: a full ring must not turn into a wakeup for every record. */
#define WAKE_INTERVAL_NS 1000000
/* Longest walk of a path or of a process's threads. */
#define COMPONENTS_MAX 128
#define CGROUP_LEVELS_MAX 32
#define THREADS_MAX 256
/* Hexadecimal digits of a container's id. */
#define CONTAINER_ID_BYTES 64
/* NAME_MAX and its NUL. */
#define NAME_BYTES 256
/* PATH_MAX, and room for the "/dev/fd/%d/" that execveat(2) puts before it. */
#define FILENAME_BYTES (4096 + 256)
/* A script names at most 255 bytes (BINPRM_BUF_SIZE), binfmt_misc's rules at most 1920 (MAX_REGISTER_LENGTH). */
#define INTERPRETER_BYTES 2048

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
 * A record with strings is put together here, because its length is only known at the end.
 *
 * A buffer that belongs to a CPU is not enough to keep two runs apart: programs stay on their CPU, but may be preempted
 * there (the iterator wherever RCU readers are, which is every kernel with PREEMPT_DYNAMIC; other hooks see
 * elastic/quark#305). So a CPU has two, and a run takes one that nobody else uses (take_buffer()).
 */
#define BUFFERS_PER_CPU 2

struct buffer {
	/* How many runs hold it or are just trying to. */
	__u64 users;
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
	/* The loader sets BUFFERS_PER_CPU (2) times the number of possible CPUs. */
	__uint(max_entries, BUFFERS_PER_CPU);
	__type(key, __u32);
	__type(value, struct buffer);
} buffers SEC(".maps");

struct process_key {
	__u64 start_ns;
	__u64 pid;
};

/* Processes whose exit was told of lately, on kernels where several threads may do so (last_thread()). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct process_key);
	__type(value, __u32);
} exits_told SEC(".maps");

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

/* How likely the cgroup is that of a container: a name that can hold a container's id first, then how deep it is. */
static __always_inline int cgroup_rank(struct cgroup *cgroup)
{
	char name[CONTAINER_ID_BYTES + 1];

	if (!cgroup->level)
		return 0;
	return bpf_probe_read_kernel_str(name, sizeof(name), cgroup->kn->name) == sizeof(name) ? 1000 + cgroup->level :
												 cgroup->level;
}

/* Takes the cgroup in the hierarchy of `subsystem` if that is one of v1 and it ranks higher. */
#define TRY_V1(subsystem)                                                                               \
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, subsystem)) {                             \
		candidate = set->subsys[bpf_core_enum_value(enum cgroup_subsys_id, subsystem)]->cgroup; \
		if (candidate->root != unified->root && candidate->level) {                             \
			if (rank < 0)                                                                   \
				rank = cgroup_rank(unified);                                            \
			candidate_rank = cgroup_rank(candidate);                                        \
			if (candidate_rank > rank) {                                                    \
				rank = candidate_rank;                                                  \
				cgroup = candidate;                                                     \
				head->facts |= PROCMON_FACT_CGROUP_V1;                                  \
			}                                                                               \
		}                                                                                       \
	}

/*
 * The path of the cgroup in the unified hierarchy. Where controllers are on v1 hierarchies (v1, hybrid), that of the one
 * which ranks highest among all: a container's runtime has to put it into those, but older ones leave it in its
 * daemon's unit in the unified hierarchy; and a unit that has no use for a controller is higher up in that controller's.
 */
static __always_inline void append_cgroup(struct buffer *buffer, struct task_struct *task)
{
	struct procmon_task *head = &buffer->exec.task;
	struct css_set *set = task->cgroups;
	struct cgroup *unified = set->dfl_cgrp, *cgroup = unified, *candidate;
	struct kernfs_node *node, *parent;
	int i, rank = -1, candidate_rank;
	__u32 end;
	long length;

	TRY_V1(memory_cgrp_id)
	TRY_V1(pids_cgrp_id)
	TRY_V1(cpu_cgrp_id)
	TRY_V1(devices_cgrp_id)
	TRY_V1(freezer_cgrp_id)

	node = cgroup->kn;
	if (!node) {
		head->unread |= PROCMON_FIELD_CGROUP;
		return;
	}
	head->cgroup_id = node->id;
	for (i = 0; i < CGROUP_LEVELS_MAX; i++) {
		if (bpf_core_field_exists(node->parent))
			parent = node->parent;
		else
			parent = ((struct kernfs_node___rcu *)node)->__parent;
		if (!parent)
			return;
		end = buffer->end;
		if (end > PROCMON_PATHS_MAX - NAME_BYTES)
			break;
		length = bpf_probe_read_kernel_str(&buffer->strings[end], NAME_BYTES, node->name);
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

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The wire contract: what the BPF program writes and otel_procmon/wire.py reads.
 *
 * All fields are little-endian and naturally aligned; the structs have no implicit padding. A test that needs no root
 * compares this layout, from the compiled object's BTF, with the decoder's. Whoever changes it raises
 * PROCMON_WIRE_VERSION.
 */
#ifndef PROCMON_H
#define PROCMON_H

#define PROCMON_WIRE_VERSION 1

/* Most bytes of arguments that one exec record carries. */
#define PROCMON_ARGS_MAX (64 * 1024)
/* Most bytes of all paths (filename, interpreter, executable, cwd, cgroup) that one exec record carries. */
#define PROCMON_PATHS_MAX (20 * 1024)

enum procmon_kind {
	PROCMON_FORK = 1,
	PROCMON_EXEC = 2,
	PROCMON_EXIT = 3,
	/* From the task iterator: a process that is running. */
	PROCMON_TASK = 4,
	PROCMON_KINDS = 5,
};

/* Bits of procmon_task.unread (could not be read) and .cut (longer than what was kept). */
enum procmon_field {
	PROCMON_FIELD_ARGS = 1 << 0,
	PROCMON_FIELD_FILENAME = 1 << 1,
	PROCMON_FIELD_INTERPRETER = 1 << 2,
	PROCMON_FIELD_EXECUTABLE = 1 << 3,
	PROCMON_FIELD_CWD = 1 << 4,
	PROCMON_FIELD_CGROUP = 1 << 5,
	PROCMON_FIELD_PARENT = 1 << 6,
	PROCMON_FIELD_VPID = 1 << 7,
	PROCMON_FIELD_SESSION = 1 << 8,
	PROCMON_FIELD_AUID = 1 << 9,
	PROCMON_FIELD_USAGE_CPU = 1 << 10,
	PROCMON_FIELD_USAGE_IO = 1 << 11,
};

/* Bits of procmon_task.facts. */
enum procmon_fact {
	PROCMON_FACT_TTY = 1 << 0,
	PROCMON_FACT_KERNEL_THREAD = 1 << 1,
	PROCMON_FACT_PARENT_KERNEL_THREAD = 1 << 2,
	/* No directory entry leads to the executable any more. */
	PROCMON_FACT_EXECUTABLE_DELETED = 1 << 3,
	PROCMON_FACT_CWD_DELETED = 1 << 4,
	/* The cgroup path is one of cgroup v1: the unified hierarchy is absent or has the process in its root. */
	PROCMON_FACT_CGROUP_V1 = 1 << 5,
	PROCMON_FACT_OOM_VICTIM = 1 << 6,
	/* Fork only: the child's memory and files are shared with the parent until it execs (vfork). */
	PROCMON_FACT_VFORK = 1 << 7,
};

/* Who: the head of every record. Pids are those of the initial pid namespace. */
struct procmon_task {
	__u32 kind;
	__u32 version;
	/* CLOCK_BOOTTIME, nanoseconds: when it happened. */
	__u64 time_ns;
	/* task_struct.start_boottime of the thread group's leader, and .self_exec_id: with the pid, the identity. */
	__u64 start_ns;
	__u64 generation;
	/* The same of the real parent; the generation is the parent's at the fork. */
	__u64 parent_start_ns;
	__u64 parent_generation;
	/* kernfs id of the cgroup whose path is told. */
	__u64 cgroup_id;
	__u32 pid;
	__u32 parent_pid;
	/* In the process's own pid namespace. */
	__u32 vpid;
	/* Pid of the session's leader; 0: the kernel's session, that of init and its children until setsid(2). */
	__u32 session_id;
	__u32 uid;
	__u32 gid;
	__u32 euid;
	__u32 egid;
	/* (__u32)-1: never set. */
	__u32 auid;
	__u32 facts;
	__u32 unread;
	__u32 cut;
	char comm[16];
};

struct procmon_fork {
	struct procmon_task task;
};

/*
 * PROCMON_EXEC, and PROCMON_TASK of which only the cgroup is filled. The strings stand behind the struct in the order
 * of their lengths here, without a NUL between or after them. A path that was walked (executable, cwd, cgroup) has its
 * components leaf first, each followed by '/'.
 */
struct procmon_exec {
	struct procmon_task task;
	/* How many arguments there were, and how many bytes of them, even if some were cut. */
	__u64 args_bytes;
	__u32 args_count;
	__u32 filename_bytes;
	__u32 interpreter_bytes;
	__u32 executable_bytes;
	__u32 cwd_bytes;
	__u32 cgroup_bytes;
	/* Each argument ends with NUL. */
	__u32 args_kept_bytes;
	__u32 reserved;
};

struct procmon_exit {
	struct procmon_task task;
	/* As waitpid(2) encodes it: low 7 bits the signal, 0x80 core dumped, the status in the next 8. */
	__u32 wait_status;
	__u32 reserved;
	/* Raw sums over all threads; decode/kernel.py scales them as the kernel does for getrusage(2). */
	__u64 utime_ns;
	__u64 stime_ns;
	__u64 runtime_ns;
	__u64 max_rss_pages;
	/* rchar and wchar of /proc/<pid>/io. */
	__u64 read_bytes;
	__u64 written_bytes;
};

/* One per CPU: how many records of each kind were due, and why some were not written. */
struct procmon_counters {
	__u64 made[PROCMON_KINDS];
	/* The ring buffer had no room. */
	__u64 lost_ring_full[PROCMON_KINDS];
	/* Another program run held every scratch buffer that this CPU may use. */
	__u64 lost_no_buffer[PROCMON_KINDS];
	/* The kernel left a program out, and one behind it saw to the event: by tracepoint, threads included. */
	__u64 left_out[PROCMON_KINDS];
};

/* Set before the program is loaded. */
struct procmon_config {
	/* Wake the reader when this many bytes wait in the ring buffer. */
	__u64 wake_bytes;
	/* At most this many bytes of arguments are kept; up to PROCMON_ARGS_MAX. */
	__u32 args_max_bytes;
	__u32 cpus;
	/*
	 * An exec, or a fork, is written only while no more than this many bytes wait. So when the ring fills up, execs
	 * are lost first and exits last: without its exit a process would seem to run for ever.
	 */
	__u64 exec_room_bytes;
	__u64 fork_room_bytes;
	/* How many programs are attached to each tracepoint, and which of them this one is, from 0. */
	__u32 programs;
	__u32 place;
};

#endif

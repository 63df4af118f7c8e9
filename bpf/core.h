/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way to the kernel by CO-RE: compiled once, placed by libbpf into any kernel with BTF. bcc.h gives the same words a
 * meaning where BCC compiles the program for the one kernel that runs.
 */
#ifndef PROCMON_CORE_H
#define PROCMON_CORE_H

#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* A field of what the verifier knows the type of. BPF_CORE_READ is for what it does not. */
#define FIELD(pointer, field) ((pointer)->field)

/* The same of struct task_io_accounting, which HAS_IO says is there. */
#define HAS_IO bpf_core_field_exists(struct task_io_accounting, rchar)
#define FIELD_IO(pointer, field) FIELD(pointer, ioac.field)
#define BPF_CORE_READ_IO(pointer, field) BPF_CORE_READ(pointer, ioac.field)

/* What stands before and after it stays apart: bcc.h needs that. */
#define APART(variable)

static __always_inline bool read_auid(struct task_struct *task, __u32 *auid)
{
	if (!bpf_core_field_exists(task->loginuid))
		return false;
	*auid = BPF_CORE_READ(task, loginuid.val);
	return true;
}

static __always_inline struct kernfs_node *kernfs_parent(struct kernfs_node *node)
{
	if (bpf_core_field_exists(node->parent))
		return node->parent;
	return ((struct kernfs_node___rcu *)node)->__parent;
}

const volatile struct procmon_config config = {
	.wake_bytes = 1024 * 1024,
	.args_max_bytes = PROCMON_ARGS_MAX,
	.cpus = 1,
	.exec_room_bytes = (__u64)-1,
	.fork_room_bytes = (__u64)-1,
	.programs = 1,
};

#define CONFIG(name) config.name
#define MAP(name) (&name)

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

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	/* The loader sets as many as a CPU has times the number of possible CPUs. */
	__uint(max_entries, BUFFERS_PER_CPU_MAX);
	__type(key, __u32);
	__type(value, struct buffer);
} buffers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct process_key);
	__type(value, __u32);
} exits_told SEC(".maps");

static __u64 last_wake;

static __always_inline __u64 *last_wake_ns(void)
{
	return &last_wake;
}

/* Keeps the types of the wire contract in the object's BTF, where the layout test looks for them. */
const struct procmon_fork *unused_fork __attribute__((unused));
const struct procmon_exit *unused_exit __attribute__((unused));
const enum procmon_field *unused_field __attribute__((unused));
const enum procmon_fact *unused_fact __attribute__((unused));
const enum procmon_kind *unused_kind __attribute__((unused));

#endif

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Configuration and maps: the ring, the counters, and the buffers in which execs are put together. */
#ifndef PROCMON_MAPS_H
#define PROCMON_MAPS_H

#include "kernel.h"

#include <bpf/bpf_helpers.h>

#include "procmon.h"

const volatile struct procmon_config config = {
	.wake_bytes = 1024 * 1024,
	.args_max_bytes = PROCMON_ARGS_MAX,
	.cpus = 1,
	.exec_room_bytes = (__u64)-1,
	.fork_room_bytes = (__u64)-1,
};

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

#endif

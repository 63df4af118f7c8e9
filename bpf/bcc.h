/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way to the kernel by BCC: compiled on the machine it runs on, against the headers of its kernel. The words are
 * those of core.h and of libbpf's headers.
 *
 * BCC is the compiler here and no more: maps and configuration are numbers that the loader (otel_procmon/source/bcc.py)
 * replaces, and what BCC would write into the source by itself (it makes
 * reads of memory out of what a program's argument points to) it leaves alone, because no argument has a type that it
 * knows: every read stands here.
 */
#ifndef PROCMON_BCC_H
#define PROCMON_BCC_H

#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/binfmts.h>
#include <linux/cgroup-defs.h>
#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/idr.h>
#include <linux/kernfs.h>
#include <linux/mm_types.h>
#include <linux/mount.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>

/* fs/mount.h is not among the headers. Its beginning has been this since 3.3. */
struct mount {
	struct hlist_node mnt_hash;
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

/* BCC's headers say that it returns an int; then the verifier could not follow how its result is checked. */
#define bpf_probe_read_kernel_str ((long (*)(void *, __u32, const void *))BPF_FUNC_probe_read_kernel_str)

/*
 * What is checked of the variable before and after it stays apart. Put together, two checks of a number's ends are one of
 * its distance from one of them, and the verifier of 6.1 does not see what that says of the number.
 */
#define APART(variable) asm volatile("" : "+r"(variable))

/* The comma takes away a field's `const`, which a local variable must not have. */
#define FIELD(pointer, field)                                                           \
	({                                                                             \
		typeof((void)0, (pointer)->field) value_;                              \
		__builtin_memset(&value_, 0, sizeof(value_));                          \
		bpf_probe_read_kernel(&value_, sizeof(value_), &(pointer)->field);     \
		value_;                                                                \
	})

#define FIELD_1(pointer, a) FIELD(pointer, a)
#define FIELD_2(pointer, a, b) FIELD(FIELD(pointer, a), b)
#define FIELD_3(pointer, a, b, c) FIELD(FIELD(FIELD(pointer, a), b), c)
#define FIELD_N(_1, _2, _3, n, ...) n
#define BPF_CORE_READ(pointer, ...) FIELD_N(__VA_ARGS__, FIELD_3, FIELD_2, FIELD_1, )(pointer, __VA_ARGS__)
#define bpf_core_read(to, size, from) bpf_probe_read_kernel(to, size, from)
#define bpf_core_field_offset(type, field) __builtin_offsetof(type, field)
#define bpf_core_type_size(type) sizeof(type)

#ifdef CONFIG_TASK_XACCT
#define HAS_IO true
#define FIELD_IO(pointer, field) FIELD(pointer, ioac.field)
#else
#define HAS_IO false
#define FIELD_IO(pointer, field) 0
#endif
#define BPF_CORE_READ_IO(pointer, field) FIELD_IO(pointer, field)

static __always_inline bool read_auid(struct task_struct *task, __u32 *auid)
{
#ifdef CONFIG_AUDIT
	*auid = FIELD(task, loginuid.val);
	return true;
#else
	return false;
#endif
}

/* Linux 6.15, 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent."): renamed. The loader tries both. */
#ifndef PROCMON_KERNFS_PARENT
#define PROCMON_KERNFS_PARENT parent
#endif

static __always_inline struct kernfs_node *kernfs_parent(struct kernfs_node *node)
{
	return (struct kernfs_node *)FIELD(node, PROCMON_KERNFS_PARENT);
}

/* Subsystems that this kernel was built without. */
#ifndef CONFIG_MEMCG
#define memory_cgrp_id (-1)
#endif
#ifndef CONFIG_CGROUP_PIDS
#define pids_cgrp_id (-1)
#endif
#ifndef CONFIG_CGROUP_SCHED
#define cpu_cgrp_id (-1)
#endif
#ifndef CONFIG_CGROUP_DEVICE
#define devices_cgrp_id (-1)
#endif
#ifndef CONFIG_CGROUP_FREEZER
#define freezer_cgrp_id (-1)
#endif
#define bpf_core_enum_value_exists(type, value) ((int)(value) >= 0)
#define bpf_core_enum_value(type, value) ((int)(value) >= 0 ? (int)(value) : 0)

/*
 * Fields of struct procmon_config, and maps. The loader gives them numbers, PROCMON_CONFIG_… and PROCMON_MAP_…, and puts
 * values and descriptors in their place: so what was compiled once serves every configuration.
 */
#define CONFIG(name) bpf_pseudo_fd(1, PROCMON_CONFIG_##name)
#define MAP(name) ((void *)bpf_pseudo_fd(1, PROCMON_MAP_##name))

/* The scheduler's clock as a CPU has shown it: see clock.h. */
struct clock_sight {
	__u64 stretch;
	__s64 ahead_ns;
	__s64 previous_ahead_ns;
};

/* The loader makes the maps, and says what sizes it gives them. */
_Static_assert(sizeof(struct procmon_counters) == PROCMON_SIZE_counters, "counters");
_Static_assert(sizeof(struct buffer) == PROCMON_SIZE_buffers, "buffers");
_Static_assert(sizeof(struct buffer) == PROCMON_SIZE_answer, "answer");
_Static_assert(sizeof(struct clock_sight) == PROCMON_SIZE_clocks, "clocks");
_Static_assert(sizeof(__u64) == PROCMON_SIZE_wakes, "wakes");
_Static_assert(sizeof(struct process_key) == PROCMON_KEY_exits_told, "exits_told");
_Static_assert(sizeof(__u32) == PROCMON_SIZE_exits_told, "exits_told");

static __always_inline __u64 *last_wake_ns(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(wakes), &zero);
}

#endif

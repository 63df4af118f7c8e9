/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The strings of an exec: paths that are walked, names, arguments. */
#ifndef PROCMON_STRINGS_H
#define PROCMON_STRINGS_H

#include "maps.h"

/* Longest walk of a path. */
#define COMPONENTS_MAX 128
#define CGROUP_LEVELS_MAX 32
/* Hexadecimal digits of a container's id. */
#define CONTAINER_ID_BYTES 64
/* NAME_MAX and its NUL. */
#define NAME_BYTES 256
/* PATH_MAX, and room for the "/dev/fd/%d/" that execveat(2) puts before it. */
#define FILENAME_BYTES (4096 + 256)
/* A script names at most 255 bytes (BINPRM_BUF_SIZE), binfmt_misc's rules at most 1920 (MAX_REGISTER_LENGTH). */
#define INTERPRETER_BYTES 2048

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

	if (!FIELD(cgroup, level))
		return 0;
	if (bpf_probe_read_kernel_str(name, sizeof(name), FIELD(FIELD(cgroup, kn), name)) == sizeof(name))
		return 1000 + FIELD(cgroup, level);
	return FIELD(cgroup, level);
}

/* Takes the cgroup in the hierarchy of `subsystem` if that is one of v1 and it ranks higher. */
#define TRY_V1(subsystem)                                                                               \
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, subsystem)) {                             \
		candidate = FIELD(FIELD(set, subsys[bpf_core_enum_value(enum cgroup_subsys_id, subsystem)]), cgroup); \
		if (FIELD(candidate, root) != FIELD(unified, root) && FIELD(candidate, level)) {                             \
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
	struct css_set *set = FIELD(task, cgroups);
	struct cgroup *unified = FIELD(set, dfl_cgrp), *cgroup = unified, *candidate;
	struct kernfs_node *node, *parent;
	int i, rank = -1, candidate_rank;
	__u32 end;
	long length;

	TRY_V1(memory_cgrp_id)
	TRY_V1(pids_cgrp_id)
	TRY_V1(cpu_cgrp_id)
	TRY_V1(devices_cgrp_id)
	TRY_V1(freezer_cgrp_id)

	node = FIELD(cgroup, kn);
	if (!node) {
		head->unread |= PROCMON_FIELD_CGROUP;
		return;
	}
	head->cgroup_id = FIELD(node, id);
	for (i = 0; i < CGROUP_LEVELS_MAX; i++) {
		parent = kernfs_parent(node);
		if (!parent)
			return;
		end = buffer->end;
		if (end > PROCMON_PATHS_MAX - NAME_BYTES)
			break;
		length = bpf_probe_read_kernel_str(&buffer->strings[end], NAME_BYTES, FIELD(node, name));
		if (length <= 0)
			goto unread;
		APART(length);
		if (length > NAME_BYTES)
			goto unread;
		/* In place of the NUL. */
		buffer->strings[end + length - 1] = '/';
		buffer->end = end + length;
		node = parent;
	}
	head->cut |= PROCMON_FIELD_CGROUP;
	return;
unread:
	head->unread |= PROCMON_FIELD_CGROUP;
}

/* Appends a NUL-terminated string of the kernel, at most `size` bytes with its NUL, which is not kept. */
static __always_inline void append_string(struct buffer *buffer, const char *string, __u32 size, __u32 field)
{
	__u32 end = buffer->end;
	long length;

	if (end > PROCMON_PATHS_MAX)
		return;
	length = bpf_probe_read_kernel_str(&buffer->strings[end], size, string);
	if (length <= 0)
		goto unread;
	APART(length);
	if (length > size)
		goto unread;
	if (length == size)
		buffer->exec.task.cut |= field;
	buffer->end = end + length - 1;
	return;
unread:
	buffer->exec.task.unread |= field;
}

static __always_inline void append_arguments(struct buffer *buffer, struct mm_struct *mm)
{
	struct procmon_exec *exec = &buffer->exec;
	unsigned long from = FIELD(mm, arg_start);
	__u64 bytes = FIELD(mm, arg_end) - from;
	__u64 in_page = 4096 - (from & 4095);
	__u32 end = buffer->end;

	exec->args_bytes = bytes;
	if (end > PROCMON_PATHS_MAX)
		return;
	if (bytes > CONFIG(args_max_bytes)) {
		bytes = CONFIG(args_max_bytes);
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

#endif

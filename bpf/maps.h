/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is in the maps beside the ring and its counters: the buffers in which execs are put together, and the processes
 * whose exit was told of. The maps themselves are declared where CO-RE and BCC differ.
 */
#ifndef PROCMON_MAPS_H
#define PROCMON_MAPS_H

#ifdef PROCMON_BCC
#include <linux/types.h>
#else
#include "kernel.h"
#endif

#include "procmon.h"

/*
 * A record with strings is put together here, because its length is only known at the end.
 *
 * A buffer that belongs to a CPU is not enough to keep two runs apart: programs stay on their CPU, but may be preempted
 * there (the iterator wherever RCU readers are, which is every kernel with PREEMPT_DYNAMIC; other hooks see
 * elastic/quark#305; and all of them since 7.0, see core_programs.h). So a CPU has two, or four where all of them may be,
 * and a run takes one that nobody else uses (take_buffer()).
 */
#define BUFFERS_PER_CPU_MAX 4

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

/* A process whose exit was told of lately, on kernels where several threads may do so (last_thread()). */
struct process_key {
	__u64 start_ns;
	__u64 pid;
};

#ifdef PROCMON_BCC
#include "bcc.h"
#else
#include "core.h"
#endif

#endif

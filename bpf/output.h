/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where records go: into the ring buffer; or, where the kernel has none (before 5.8) and BCC made the program, into the
 * perf buffer of the CPU, which cannot be written in place and does not say how full it is.
 */
#ifndef PROCMON_OUTPUT_H
#define PROCMON_OUTPUT_H

#include "maps.h"

#ifdef PROCMON_PERF

/* Room for a record of known length on the stack. */
#define PLACE(type, name) type name = {}

#define HAS_ROOM(bytes) true

static __always_inline void *reserve(void *place, __u64 size)
{
	return place;
}

static __always_inline bool output(void *context, void *record, __u64 size, __u64 now_ns)
{
	return !bpf_perf_event_output(context, MAP(ring), BPF_F_CURRENT_CPU, record, size);
}

static __always_inline bool submit(void *context, void *record, __u64 size, __u64 now_ns)
{
	return output(context, record, size, now_ns);
}

#else

/* Records of known length are filled in the ring. */
#define PLACE(type, name) char name

/* 1 ms: a full ring must not turn into a wakeup for every record. */
#define WAKE_INTERVAL_NS 1000000

static __always_inline __u64 wake_flags(__u64 now_ns)
{
	__u64 *last_ns;

	if (bpf_ringbuf_query(MAP(ring), BPF_RB_AVAIL_DATA) < CONFIG(wake_bytes))
		return BPF_RB_NO_WAKEUP;
	/*
	 * Two CPUs may both pass here: one wakeup too many does no harm. One too few could, if the reader took all and
	 * went to sleep again, and what is left of the ring after wake_bytes then filled within the interval: no memory
	 * is that fast. A reader that is awake needs none; epoll asks the ring itself before it sleeps.
	 */
	last_ns = last_wake_ns();
	if (!last_ns || (__s64)(now_ns - *last_ns) < WAKE_INTERVAL_NS)
		return BPF_RB_NO_WAKEUP;
	*last_ns = now_ns;
	return BPF_RB_FORCE_WAKEUP;
}

/* Whether no more than `bytes` wait. */
#define HAS_ROOM(bytes) (bpf_ringbuf_query(MAP(ring), BPF_RB_AVAIL_DATA) <= (bytes))

/* Room for a record of `size` bytes; NULL if there is none. */
static __always_inline void *reserve(void *place, __u64 size)
{
	return bpf_ringbuf_reserve(MAP(ring), size, 0);
}

/* Copies a record. False: there is no room. */
static __always_inline bool output(void *context, void *record, __u64 size, __u64 now_ns)
{
	return !bpf_ringbuf_output(MAP(ring), record, size, wake_flags(now_ns));
}

/* Hands on what `reserve` gave. False: there is no room. */
static __always_inline bool submit(void *context, void *record, __u64 size, __u64 now_ns)
{
	bpf_ringbuf_submit(record, wake_flags(now_ns));
	return true;
}

#endif

#endif

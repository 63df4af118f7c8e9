// SPDX-License-Identifier: Apache-2.0
/*
 * Everything that a process can do to a tracer, one row after the other, and an account of it.
 *
 *   torture all MARKER       run every row, each as a child of its own: `torture ROW`
 *   torture list             print the rows' names
 *   torture burst TINY N     run N short processes as fast as the machine can
 *   torture leaf CODE ...    exit with CODE
 *
 * `torture all` checks that each row ended as the table below says, and exits 1 if one did not. With the environment
 * variable TORTURE_ACCOUNT it writes what it did into that file, one JSON object a line:
 *
 *   {"forked": CHILD, "by": PARENT}      pids of the initial namespace; the parent is the one that may wait for it
 *   {"reaped": PID, "status": STATUS}    as wait(2) gave it
 *   {"ran": PID, "arguments": N, "bytes": N, "fnv1a": "hexadecimal"}     main() was called with these
 *
 * Compiled with -DTINY, it is the short program instead: without libc where that is possible, it exits with its
 * argument modulo 256.
 */
#define _GNU_SOURCE

#ifdef TINY

static int status_of(const char *digits)
{
	unsigned int number = 0;

	while (*digits >= '0' && *digits <= '9')
		number = number * 10 + (*digits++ - '0');
	return number & 255;
}

#if defined(__x86_64__)
__attribute__((used)) void start(long *stack)
{
	long result, status = status_of((const char *)stack[2]);

	__asm__ volatile("syscall" : "=a"(result) : "a"(231), "D"(status) : "rcx", "r11", "memory");
	__builtin_unreachable();
}
__asm__(".global _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
#elif defined(__aarch64__)
__attribute__((used)) void start(long *stack)
{
	register long status __asm__("x0") = status_of((const char *)stack[2]);
	register long number __asm__("x8") = 94;

	__asm__ volatile("svc 0" : : "r"(status), "r"(number) : "memory");
	__builtin_unreachable();
}
__asm__(".global _start\n_start:\n\tmov x0, sp\n\tbl start\n");
#else
#error "write _start for this machine"
#endif

#else

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static char self[PATH_MAX];

#define EXITED(code) ((code) << 8)
#define KILLED(number) (number)
#define CORE_DUMPED 0x80
/* Which status it is depends on the kernel; the account tells. */
#define ANY_STATUS (-1)

#define DIE(what)                                                                                  \
	do {                                                                                       \
		fprintf(stderr, "torture: line %d: %s: %s\n", __LINE__, what, strerror(errno));    \
		_exit(99);                                                                         \
	} while (0)

#define TRY(call)                                                                                  \
	({                                                                                         \
		__typeof__(call) result_ = (call);                                                 \
		if (result_ < 0)                                                                   \
			DIE(#call);                                                                \
		result_;                                                                           \
	})

/* In the initial pid namespace (that of /proc), also where getpid() is another. */
static int real_pid(void)
{
	char text[32] = "";

	TRY(readlink("/proc/self", text, sizeof(text) - 1));
	return atoi(text);
}

__attribute__((format(printf, 1, 2))) static void account(const char *format, ...)
{
	const char *path = getenv("TORTURE_ACCOUNT");
	char line[256];
	va_list arguments;
	int file, length;

	if (!path)
		return;
	va_start(arguments, format);
	length = vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	file = TRY(open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
	if (write(file, line, length) != length)
		DIE("write");
	close(file);
}

static void account_for_myself(int argc, char **argv)
{
	uint64_t hash = 0xcbf29ce484222325;
	size_t bytes = 0;
	int i;

	for (i = 0; i < argc; i++) {
		const unsigned char *byte = (const unsigned char *)argv[i];

		do {
			hash = (hash ^ *byte) * 0x100000001b3;
			bytes++;
		} while (*byte++);
	}
	account("{\"ran\": %d, \"arguments\": %d, \"bytes\": %zu, \"fnv1a\": \"%016llx\"}\n", real_pid(), argc, bytes,
		(unsigned long long)hash);
}

static pid_t forked(pid_t child)
{
	TRY(child);
	if (child > 0)
		account("{\"forked\": %d, \"by\": %d}\n", child, getpid());
	return child;
}

/* 0 in the child. */
static pid_t fork_child(void)
{
	return forked(fork());
}

/* Waits for `child`, or for any if it is -1. */
static int reap(pid_t child)
{
	int status;

	child = TRY(waitpid(child, &status, 0));
	account("{\"reaped\": %d, \"status\": %d}\n", child, status);
	return status;
}

static void become(const char *path, char **argv)
{
	execve(path, argv, environ);
	DIE("execve");
}

static void become_leaf(const char *code)
{
	become(self, (char *[]){ "torture", "leaf", (char *)code, NULL });
}

/* Forks, execs with `argv`, waits. */
static void run(const char *path, char **argv)
{
	pid_t child = fork_child();

	if (!child)
		become(path, argv);
	reap(child);
}

static void wait_a_little(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static int copy_of_self(const char *path)
{
	int from = TRY(open(self, O_RDONLY | O_CLOEXEC));
	int to = path ? TRY(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755)) : TRY(memfd_create("torture memfd", 0));
	char bytes[65536];
	ssize_t length;

	while ((length = TRY(read(from, bytes, sizeof(bytes)))) > 0)
		if (write(to, bytes, length) != length)
			DIE("write");
	close(from);
	return to;
}

/* The rows. Each is a process of its own, with argv[1] its name. */

static int exit_0(int argc, char **argv)
{
	return 0;
}

static int exit_1(int argc, char **argv)
{
	return 1;
}

static int exit_42(int argc, char **argv)
{
	return 42;
}

static int exit_255(int argc, char **argv)
{
	return 255;
}

static int exec_twice(int argc, char **argv)
{
	if (argc > 2)
		become_leaf("2");
	become(self, (char *[]){ "torture", argv[1], "again", NULL });
	return 99;
}

static sem_t all_started;

static void *thread_execs(void *argument)
{
	/* An exec kills the other threads, in the middle of a clone too; what that made, strace could not tell then. */
	while (sem_wait(&all_started))
		;
	become_leaf("12");
	return NULL;
}

static void *thread_pauses(void *argument)
{
	for (;;)
		pause();
	return NULL;
}

static void start_thread(void *(*function)(void *))
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, function, NULL);
	if (errno)
		DIE("pthread_create");
}

static int exec_thread(int argc, char **argv)
{
	TRY(sem_init(&all_started, 0, 0));
	start_thread(thread_pauses);
	start_thread(thread_execs);
	start_thread(thread_pauses);
	TRY(sem_post(&all_started));
	thread_pauses(NULL);
	return 99;
}

static void *thread_returns(void *argument)
{
	return NULL;
}

static int threads(int argc, char **argv)
{
	pthread_t started[16];
	int i;

	for (i = 0; i < 16; i++) {
		errno = pthread_create(&started[i], NULL, thread_returns, NULL);
		if (errno)
			DIE("pthread_create");
	}
	for (i = 0; i < 16; i++)
		pthread_join(started[i], NULL);
	return 13;
}

/* A thread that forks: the child's parent is the process. */
static void *thread_forks(void *argument)
{
	run(self, (char *[]){ "torture", "leaf", "14", NULL });
	return NULL;
}

static int fork_in_thread(int argc, char **argv)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, thread_forks, NULL);
	if (errno)
		DIE("pthread_create");
	pthread_join(thread, NULL);
	return 0;
}

static void wait_for_leaders_end(void)
{
	char path[64], stat[512], *state;
	ssize_t length;
	int file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", getpid());
	for (;;) {
		file = TRY(open(path, O_RDONLY | O_CLOEXEC));
		length = TRY(read(file, stat, sizeof(stat) - 1));
		close(file);
		stat[length] = 0;
		state = strrchr(stat, ')');
		if (state && state[2] == 'Z')
			return;
		wait_a_little();
	}
}

static void *last_exits(void *argument)
{
	wait_for_leaders_end();
	_exit(7);
}

static int leader_first(int argc, char **argv)
{
	start_thread(last_exits);
	pthread_exit(NULL);
}

static void *last_returns(void *argument)
{
	wait_for_leaders_end();
	syscall(SYS_exit, 9);
	return NULL;
}

/* Nobody ends the group. Until Linux 5.19 or so its code was the leader's, since then the last thread's. */
static int leader_first_no_group_exit(int argc, char **argv)
{
	start_thread(last_returns);
	syscall(SYS_exit, 5);
	return 99;
}

static void *last_is_killed(void *argument)
{
	wait_for_leaders_end();
	kill(getpid(), SIGTERM);
	return thread_pauses(NULL);
}

static int leader_first_killed(int argc, char **argv)
{
	start_thread(last_is_killed);
	syscall(SYS_exit, 5);
	return 99;
}

static int orphan(int argc, char **argv)
{
	pid_t parent = fork_child();

	if (!parent) {
		parent = getpid();
		if (fork_child())
			_exit(4);
		while (getppid() == parent)
			wait_a_little();
		become_leaf("11");
	}
	reap(parent);
	return 0;
}

static void wait_for_end_of_file(int file)
{
	char byte;

	while (TRY(read(file, &byte, 1)) > 0)
		;
}

/* The child execs when its parent runs another program already. */
static int parent_execs_first(int argc, char **argv)
{
	int ends[2];

	if (argc > 2) {
		reap(-1);
		return 0;
	}
	TRY(pipe2(ends, O_CLOEXEC));
	if (!fork_child()) {
		close(ends[1]);
		wait_for_end_of_file(ends[0]);
		become_leaf("15");
	}
	become(self, (char *[]){ "torture", argv[1], "again", NULL });
	return 99;
}

static int subshells(int argc, char **argv)
{
	char *script = "( ( \"$0\" leaf 1; ( exit 2 ); ( \"$0\" leaf 6; exec \"$0\" leaf 8 ); exit 3 ); exit 4 )\n"
		       "test $? = 4 && echo \"$(\"$0\" leaf 9; (exit 10))\" | cat >/dev/null && exit 5";

	become("/bin/sh", (char *[]){ "sh", "-c", script, self, NULL });
	return 99;
}

static int vforks(int argc, char **argv)
{
	char *leaf[] = { "torture", "leaf", "21", NULL };
	pid_t child = vfork();

	if (!child) {
		execve(self, leaf, environ);
		_exit(99);
	}
	forked(child);
	reap(child);
	child = vfork();
	if (!child)
		_exit(22);
	forked(child);
	reap(child);
	return 0;
}

static int spawns(int argc, char **argv)
{
	char *leaf[] = { "torture", "leaf", "23", NULL };
	pid_t child;

	errno = posix_spawn(&child, self, NULL, NULL, leaf, environ);
	if (errno)
		DIE("posix_spawn");
	forked(child);
	reap(child);
	return 0;
}

static int clone_parent(int argc, char **argv)
{
	pid_t child = fork_child();

	if (!child) {
		child = TRY(syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0));
		if (!child)
			become_leaf("24");
		account("{\"forked\": %d, \"by\": %d}\n", child, getppid());
		_exit(25);
	}
	reap(-1);
	reap(-1);
	return 0;
}

static void write_script(const char *path, const char *text)
{
	int file = TRY(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755));

	if (write(file, text, strlen(text)) != (ssize_t)strlen(text))
		DIE("write");
	close(file);
}

static int shebang(int argc, char **argv)
{
	write_script("torture-script", "#! /bin/sh -e \nexit 26\n");
	write_script("torture-script-of-script", "#!./torture-script an argument\n");
	run("./torture-script", (char *[]){ "a name", "one two", "", "three", NULL });
	run("torture-script-of-script", (char *[]){ "a name", NULL });
	return 0;
}

static int memfd(int argc, char **argv)
{
	int file = copy_of_self(NULL);

	syscall(SYS_execveat, file, "", (char *[]){ "a memfd", "leaf", "27", NULL }, environ, AT_EMPTY_PATH);
	DIE("execveat");
}

static int execveat_directory(int argc, char **argv)
{
	char *name = strrchr(self, '/');
	int directory;

	*name = 0;
	directory = TRY(open(self, O_PATH | O_DIRECTORY));
	syscall(SYS_execveat, directory, name + 1, (char *[]){ "torture", "leaf", "28", NULL }, environ, 0);
	DIE("execveat");
}

static int deleted(int argc, char **argv)
{
	int file;

	close(copy_of_self("torture-deleted"));
	file = TRY(open("torture-deleted", O_RDONLY));
	TRY(unlink("torture-deleted"));
	syscall(SYS_execveat, file, "", (char *[]){ "deleted", "leaf", "29", NULL }, environ, AT_EMPTY_PATH);
	DIE("execveat");
}

/* From Linux 5.18 on, the kernel puts one empty argument there. */
static int argc_0(int argc, char **argv)
{
	become(self, (char *[]){ NULL });
	return 99;
}

static int relative_path(int argc, char **argv)
{
	char *name = strrchr(self, '/');
	char path[PATH_MAX];

	TRY(mkdir("a directory", 0755));
	TRY(chdir("a directory"));
	*name = 0;
	TRY(symlink(self, "a link"));
	snprintf(path, sizeof(path), "../a directory/./a link/%s", name + 1);
	become(path, (char *[]){ "torture", "leaf", "0", NULL });
	return 99;
}

static int args_newline(int argc, char **argv)
{
	run(self, (char *[]){ "torture", "leaf", "0", "one\ntwo", "\n", "\r\n tab\t", " ", "", NULL });
	return 0;
}

static int args_escapes(int argc, char **argv)
{
	run(self, (char *[]){ "torture", "leaf", "0", "\033]0;title\007\033[31mred\033[2J", "\177\b\001", "\xc2\x9b"
									       "31m",
			      "\xe2\x80\xae", "\"quotes\" '\\x41' \\", NULL });
	return 0;
}

static int args_not_utf8(int argc, char **argv)
{
	run(self, (char *[]){ "torture", "leaf", "0", "\xff\xfe", "cut \xc3", "\xe2\x82", "surrogate \xed\xa0\x80",
			      "beyond \xf4\x90\x80\x80", "overlong \xc0\xaf", "good \xe2\x82\xac", "\xf0\x9f\x9a\x80",
			      NULL });
	return 0;
}

static int args_empty(int argc, char **argv)
{
	run(self, (char *[]){ "", "leaf", "0", "", "", "", NULL });
	return 0;
}

static int args_many(int argc, char **argv)
{
	static char texts[3000][8];
	static char *many[3004] = { "torture", "leaf", "0" };
	int i;

	for (i = 0; i < 3000; i++) {
		snprintf(texts[i], sizeof(texts[i]), "%d", i);
		many[i + 3] = texts[i];
	}
	run(self, many);
	return 0;
}

/* `count` arguments of `length` bytes, NUL included, no two bytes' surroundings alike. */
static void run_with_long_arguments(int count, size_t length)
{
	char **long_argv = calloc(count + 4, sizeof(*long_argv));
	int i;
	size_t j;

	long_argv[0] = "torture";
	long_argv[1] = "leaf";
	long_argv[2] = "0";
	for (i = 0; i < count; i++) {
		char *text = malloc(length);

		for (j = 0; j < length - 1; j++)
			text[j] = 'a' + (i + j + j / 26) % 26;
		text[length - 1] = 0;
		long_argv[i + 3] = text;
	}
	run(self, long_argv);
}

static int args_32kB(int argc, char **argv)
{
	run_with_long_arguments(1, 32000);
	return 0;
}

static int args_60kB(int argc, char **argv)
{
	run_with_long_arguments(1, 60000);
	return 0;
}

static int args_2MB(int argc, char **argv)
{
	struct rlimit limit;

	/* A quarter of the stack's limit is what arguments may have. */
	TRY(getrlimit(RLIMIT_STACK, &limit));
	limit.rlim_cur = 64 * 1024 * 1024;
	if (limit.rlim_max < limit.rlim_cur)
		limit.rlim_max = limit.rlim_cur;
	TRY(setrlimit(RLIMIT_STACK, &limit));
	run_with_long_arguments(20, 105000);
	return 0;
}

static int killed(int argc, char **argv)
{
	raise(SIGKILL);
	return 99;
}

static int core_dumped(int argc, char **argv)
{
	TRY(setrlimit(RLIMIT_CORE, &(struct rlimit){ RLIM_INFINITY, RLIM_INFINITY }));
	*(volatile int *)(intptr_t)(argc - 2) = 1;
	return 99;
}

static int no_core(int argc, char **argv)
{
	TRY(prctl(PR_SET_DUMPABLE, 0));
	*(volatile int *)(intptr_t)(argc - 2) = 1;
	return 99;
}

static int realtime_signal(int argc, char **argv)
{
	raise(SIGRTMIN + 3);
	return 99;
}

static int fork_killed(int argc, char **argv)
{
	pid_t child = fork_child();

	if (!child)
		thread_pauses(NULL);
	TRY(kill(child, SIGTERM));
	reap(child);
	return 0;
}

static int pid_namespace(int argc, char **argv)
{
	/* What fork returns in there is of no use for the account. */
	pid_t child = forked(syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0));

	if (!child) {
		child = TRY(fork());
		if (!child)
			become_leaf("30");
		TRY(waitpid(child, NULL, 0));
		become_leaf("31");
	}
	reap(child);
	return 0;
}

static int new_session(int argc, char **argv)
{
	pid_t child = fork_child();

	if (!child) {
		TRY(setsid());
		become_leaf("32");
	}
	reap(child);
	return 0;
}

static int prefork(int argc, char **argv)
{
	pid_t workers[3];
	int ends[2], i;

	TRY(pipe2(ends, O_CLOEXEC));
	for (i = 0; i < 3; i++) {
		workers[i] = fork_child();
		if (!workers[i]) {
			close(ends[1]);
			wait_for_end_of_file(ends[0]);
			_exit(3);
		}
	}
	close(ends[1]);
	for (i = 0; i < 3; i++)
		reap(workers[i]);
	return 0;
}

/* A fork without exec, below which there is an exec. */
static int worker_runs_program(int argc, char **argv)
{
	pid_t child = fork_child();

	if (!child) {
		run(self, (char *[]){ "torture", "leaf", "33", NULL });
		_exit(34);
	}
	reap(child);
	return 0;
}

/* A fork that runs a program, and only then execs itself. */
static int worker_execs_later(int argc, char **argv)
{
	pid_t child = fork_child();

	if (!child) {
		run(self, (char *[]){ "torture", "leaf", "35", NULL });
		become_leaf("36");
	}
	reap(child);
	return 0;
}

static int exec_fails(int argc, char **argv)
{
	pid_t child = fork_child();

	if (!child) {
		execve("/nonexistent/program", argv, environ);
		_exit(127);
	}
	reap(child);
	return 0;
}

static const struct row {
	const char *name;
	int (*function)(int argc, char **argv);
	/* How its process is to end. */
	int status;
} rows[] = {
	{ "exit-0", exit_0, EXITED(0) },
	{ "exit-1", exit_1, EXITED(1) },
	{ "exit-42", exit_42, EXITED(42) },
	{ "exit-255", exit_255, EXITED(255) },
	{ "exec-twice", exec_twice, EXITED(2) },
	{ "exec-thread", exec_thread, EXITED(12) },
	{ "threads", threads, EXITED(13) },
	{ "fork-in-thread", fork_in_thread, EXITED(0) },
	{ "leader-first", leader_first, EXITED(7) },
	{ "leader-first-no-group-exit", leader_first_no_group_exit, ANY_STATUS },
	{ "leader-first-killed", leader_first_killed, KILLED(SIGTERM) },
	{ "orphan", orphan, EXITED(0) },
	{ "parent-execs-first", parent_execs_first, EXITED(0) },
	{ "subshells", subshells, EXITED(5) },
	{ "vfork", vforks, EXITED(0) },
	{ "posix-spawn", spawns, EXITED(0) },
	{ "clone-parent", clone_parent, EXITED(0) },
	{ "shebang", shebang, EXITED(0) },
	{ "memfd", memfd, EXITED(27) },
	{ "execveat-directory", execveat_directory, EXITED(28) },
	{ "deleted", deleted, EXITED(29) },
	{ "argc-0", argc_0, EXITED(28) },
	{ "relative-path", relative_path, EXITED(0) },
	{ "args-newline", args_newline, EXITED(0) },
	{ "args-escapes", args_escapes, EXITED(0) },
	{ "args-not-utf8", args_not_utf8, EXITED(0) },
	{ "args-empty", args_empty, EXITED(0) },
	{ "args-many", args_many, EXITED(0) },
	{ "args-32kB", args_32kB, EXITED(0) },
	{ "args-60kB", args_60kB, EXITED(0) },
	{ "args-2MB", args_2MB, EXITED(0) },
	{ "killed", killed, KILLED(SIGKILL) },
	{ "core-dumped", core_dumped, KILLED(SIGSEGV | CORE_DUMPED) },
	{ "no-core", no_core, KILLED(SIGSEGV) },
	/* SIGRTMIN is not a constant: 34 with glibc. */
	{ "realtime-signal", realtime_signal, KILLED(37) },
	{ "fork-killed", fork_killed, EXITED(0) },
	{ "pid-namespace", pid_namespace, EXITED(0) },
	{ "new-session", new_session, EXITED(0) },
	{ "prefork", prefork, EXITED(0) },
	{ "worker-runs-program", worker_runs_program, EXITED(0) },
	{ "worker-execs-later", worker_execs_later, EXITED(0) },
	{ "exec-fails", exec_fails, EXITED(0) },
};

#define ROWS ((int)(sizeof(rows) / sizeof(rows[0])))

static int run_all(void)
{
	int i, status, bad = 0;

	/* Orphans come to this process, so that it ends last. */
	TRY(prctl(PR_SET_CHILD_SUBREAPER, 1));
	for (i = 0; i < ROWS; i++) {
		pid_t child = fork_child();

		if (!child)
			become(self, (char *[]){ "torture", (char *)rows[i].name, NULL });
		status = reap(child);
		if (rows[i].status != ANY_STATUS && status != rows[i].status) {
			fprintf(stderr, "torture: %s ended with %#x, not %#x\n", rows[i].name, status, rows[i].status);
			bad = 1;
		}
		while ((child = waitpid(-1, &status, 0)) > 0)
			account("{\"reaped\": %d, \"status\": %d}\n", child, status);
	}
	return bad;
}

static pid_t start_tiny(const char *tiny, char *number)
{
	char *const tiny_argv[] = { (char *)tiny, number, NULL };
	char *const nothing[] = { NULL };
	pid_t child = vfork();

	if (!child) {
		execve(tiny, tiny_argv, nothing);
		_exit(99);
	}
	return TRY(child);
}

/* Every `workers`th short process from `first` on. The number of those that did not end as they should. */
static int burst_worker(const char *tiny, int first, int workers, int count)
{
	int i, status, bad = 0;

	for (i = first; i < count; i += workers) {
		char number[16];

		snprintf(number, sizeof(number), "%d", i);
		TRY(waitpid(start_tiny(tiny, number), &status, 0));
		bad += status != EXITED(i & 255);
	}
	return bad;
}

static int burst(const char *tiny, int count)
{
	int workers = sysconf(_SC_NPROCESSORS_ONLN), i, status, bad = 0;

	for (i = 0; i < workers; i++)
		if (!TRY(fork()))
			_exit(burst_worker(tiny, i, workers, count) != 0);
	for (i = 0; i < workers; i++) {
		TRY(wait(&status));
		bad |= status != 0;
	}
	return bad;
}

int main(int argc, char **argv)
{
	const char *name;
	int i;

	TRY(readlink("/proc/self/exe", self, sizeof(self) - 1));
	account_for_myself(argc, argv);
	if (argc < 2)
		return 28;
	name = argv[1];
	if (!strcmp(name, "leaf"))
		return atoi(argv[2]);
	if (!strcmp(name, "all"))
		return run_all();
	if (!strcmp(name, "burst"))
		return burst(argv[2], atoi(argv[3]));
	for (i = 0; i < ROWS; i++) {
		if (!strcmp(name, "list"))
			puts(rows[i].name);
		else if (!strcmp(name, rows[i].name))
			return rows[i].function(argc, argv);
	}
	return strcmp(name, "list") ? 98 : 0;
}

#endif

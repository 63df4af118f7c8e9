/*
 * Processes that mean no good, for tests/kernel/test_hostile.py.
 *
 *   hostile bomb SECONDS            children fork children until there may be no more; those end, and others are made
 *   hostile rename COUNT            names itself COUNT times; each 1000th time a child has the name, and ends
 *   hostile crowd COUNT             COUNT processes at once; says so, and ends them all when its standard input ends
 *   hostile again PID COUNT         COUNT processes one after another that have the pid PID, or that of a free one near
 *   hostile short COUNT             COUNT processes one after another that do nothing
 *   hostile stall LONG              a page of its arguments is there only when it says so, and it never does; says that
 *
 * What follows the arguments that are named here is ignored: tests put a word there. Exits 0, or with the number of the
 * errno that was not expected.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	int number = errno;

	perror(what);
	_exit(number);
}

static void say(const char *word)
{
	if (write(1, word, strlen(word)) < 0 || write(1, "\n", 1) < 0)
		fail("write");
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int bomb(double seconds)
{
	pid_t root = getpid();
	double end = now() + seconds;

	signal(SIGCHLD, SIG_IGN);
	while (now() < end) {
		pid_t child = fork();

		/* Where there is no room for more, whoever is not the first makes some. */
		if (child < 0 && getpid() != root)
			_exit(0);
		if (child < 0)
			sched_yield();
	}
	return 0;
}

/* What a name may hold: everything but NUL, 15 bytes of it. */
static const char *const names[] = {
	"\x1b[2J\x1b[31m", "a\nb\rc", "\xff\xfe\x80", "\xe2\x80\xae" "evil", "\"'\\`$(x)", "\t\v\f\b\a", "]0;x\a", "",
	"/../..", "%s%n%x", "\xed\xa0\x80", "--password=x", "\x7f\x9b" "31m", "(x) S 1 1 1", "{\"a\":1}",
};

static int renames(long count, char **argv, size_t room)
{
	char *own = argv[0];
	long i;

	for (i = 1; i <= count; i++) {
		const char *name = names[i % (sizeof(names) / sizeof(*names))];

		if (prctl(PR_SET_NAME, name, 0, 0, 0))
			fail("prctl");
		/* Also what /proc/self/cmdline reads. */
		snprintf(own, room, "%s%ld", name, i);
		if (i % 1000 == 0) {
			pid_t child = fork();

			if (child < 0)
				fail("fork");
			if (!child)
				_exit(7);
			if (waitpid(child, NULL, 0) < 0)
				fail("waitpid");
		}
	}
	return 0;
}

static int waits(void *unused)
{
	(void)unused;
	for (;;)
		syscall(SYS_pause);
	return 0;
}

static int crowd(long count)
{
	/* They share all memory, even the stack: none of them ever does anything else than the others. */
	static char stack[65536] __attribute__((aligned(16)));
	char rest[16];
	long i;

	if (setpgid(0, 0))
		fail("setpgid");
	for (i = 0; i < count; i++)
		if (clone(waits, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL) < 0)
			fail("clone");
	say("all are there");
	while (read(0, rest, sizeof(rest)) > 0)
		;
	signal(SIGTERM, SIG_IGN);
	kill(0, SIGTERM);
	while (wait(NULL) > 0 || errno == EINTR)
		;
	return 0;
}

static pid_t clone_as(pid_t pid)
{
	struct clone_args args = {
		.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1,
	};

	return syscall(SYS_clone3, &args, sizeof(args));
}

static int again(pid_t pid, long count)
{
	long made = 0;

	while (made < count) {
		pid_t child = clone_as(pid);

		if (child < 0 && errno == EEXIST && !made) {
			pid--;
			continue;
		}
		if (child < 0 && errno == EEXIST) {
			/* Somebody's process has it, by chance. */
			usleep(1000);
			continue;
		}
		if (child < 0)
			fail("clone3");
		if (!child) {
			if (made % 10)
				_exit(made % 100);
			execl("/bin/true", "true", "again", NULL);
			_exit(111);
		}
		if (waitpid(child, NULL, 0) < 0)
			fail("waitpid");
		made++;
	}
	printf("%d\n", pid);
	return 0;
}

static int shorts(long count)
{
	int status;

	while (count--) {
		pid_t child = vfork();

		if (child < 0)
			fail("vfork");
		if (!child)
			_exit(5);
		if (waitpid(child, &status, 0) < 0)
			fail("waitpid");
	}
	return 0;
}

static void stall(char **argv)
{
	long page = sysconf(_SC_PAGESIZE);
	/* In the middle of a long one: what this function needs of the stack is nowhere near. */
	uintptr_t begin = (uintptr_t)(argv[2] + strlen(argv[2]) / 2) & ~(page - 1);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { .start = begin, .len = page }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int faults = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (faults < 0)
		fail("userfaultfd");
	if (ioctl(faults, UFFDIO_API, &api))
		fail("UFFDIO_API");
	if (mmap((void *)begin, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		fail("mmap");
	if (ioctl(faults, UFFDIO_REGISTER, &range))
		fail("UFFDIO_REGISTER");
	say("stalled");
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	long count = argc > 2 ? atol(argv[2]) : 0;

	if (!strcmp(what, "bomb"))
		return bomb(count);
	if (!strcmp(what, "rename"))
		return renames(count, argv, strlen(argv[0]) + 1);
	if (!strcmp(what, "crowd"))
		return crowd(count);
	if (!strcmp(what, "again"))
		return again(count, argc > 3 ? atol(argv[3]) : 0);
	if (!strcmp(what, "short"))
		return shorts(count);
	if (!strcmp(what, "stall") && argc > 2)
		stall(argv);
	return EINVAL;
}

// Starts programs as process 1 of PID namespaces, as `unshare --pid --fork --kill-child` does, and measures
// times of microseconds.
//
//   namespace run   [-p] [-r ROOT] FD PROGRAM ARG...
//       Print the pid outside of the namespace, and run until PROGRAM ends. For each number that is read from FD, make
//       that many orphans in the namespace, and write "made".
//   namespace start COUNT [-p] [-r ROOT] PROGRAM ARG...
//       COUNT times: print the microseconds from exec until SIGTERM is blocked or handled, and the CPU time in them.
//   namespace term  COUNT MAX SLOTS LIMIT [-p] [-r ROOT] PROGRAM ARG...
//       COUNT times, SLOTS at a time: send SIGTERM after a random time up to MAX microseconds. Print this time, and the
//       time until the end, or -1 if it takes more than LIMIT milliseconds.
//
// -p: mount the namespace's /proc. -r: change the root.
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int proc;
static const char *root;
static int limit; // milliseconds from SIGTERM to the end, at most

static long now(void) { // microseconds
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static void die(const char *what) {
	perror(what);
	_exit(125);
}

static void serve(int orders) {
	char line[16];
	for (ssize_t size; (size = read(orders, line, sizeof line - 1)) > 0;) {
		line[size] = 0;
		for (int left = atoi(line); left > 0; left--) {
			pid_t parent = fork();
			if (parent == 0) {
				fork(); // both end at once, and the inner one is an orphan
				_exit(0);
			}
			waitpid(parent, NULL, 0);
		}
		if (write(orders, "made\n", 5) != 5)
			break;
	}
	_exit(0);
}

// Starts PROGRAM as process 1, and returns after its exec. `orders`: the FD of `run`, or 0.
static pid_t spawn(char **program, int orders) {
	int done[2];
	if (pipe2(done, O_CLOEXEC))
		die("pipe");
	pid_t child = syscall(SYS_clone, CLONE_NEWPID | (proc || root ? CLONE_NEWNS : 0) | SIGCHLD, 0, 0, 0, 0);
	if (child < 0)
		die("clone");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if ((proc || root) && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
			die("mount");
		if (root && (chroot(root) || chdir("/")))
			die(root);
		if (proc && mount("proc", "/proc", "proc", 0, NULL))
			die("/proc");
		dup2(2, 1); // standard output is for the figures
		if (orders > 2) {
			if (fork() == 0) {
				close(done[1]);
				serve(orders);
			}
			close(orders);
		}
		execv(*program, program);
		die(*program);
	}
	close(done[1]);
	char byte;
	if (read(done[0], &byte, 1)) // the exec closes the other end
		die("exec");
	close(done[0]);
	return child;
}

static void finish(pid_t child) {
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static int term_is_safe(int status) { // 1 if SIGTERM is blocked or handled
	char text[4096];
	ssize_t size = pread(status, text, sizeof text - 1, 0);
	if (size <= 0)
		return 0;
	text[size] = 0;
	for (const char *key = "SigBlk:\0SigCgt:"; *key; key += 8) {
		char *found = strstr(text, key);
		if (found && strtoull(found + 7, NULL, 16) >> (SIGTERM - 1) & 1)
			return 1;
		if (key[3] == 'C')
			break;
	}
	return 0;
}

static void start(char **program) {
	char path[64];
	pid_t child = spawn(program, 0);
	long began = now(), cpu = 0;
	snprintf(path, sizeof path, "/proc/%d/status", child);
	int status = open(path, O_RDONLY | O_CLOEXEC);
	while (!term_is_safe(status) && now() - began < 5000000)
		;
	long ready = now() - began;
	snprintf(path, sizeof path, "/proc/%d/schedstat", child);
	FILE *stat = fopen(path, "r");
	if (stat && fscanf(stat, "%ld", &cpu) != 1)
		cpu = 0;
	if (stat)
		fclose(stat);
	close(status);
	printf("%ld %ld\n", ready, cpu / 1000);
	finish(child);
}

static void term(char **program, long most) {
	unsigned number = 0;
	if (getrandom(&number, sizeof number, 0) != sizeof number)
		die("getrandom");
	long delay = number % most;
	pid_t child = spawn(program, 0);
	long began = now();
	if (delay > 2000)
		usleep(delay - 1000);
	while (now() - began < delay)
		;
	long sent = now() - began;
	kill(child, SIGTERM);
	struct pollfd end = {syscall(SYS_pidfd_open, child, 0), POLLIN, 0};
	long ended = poll(&end, 1, limit) == 1 ? now() - began - sent : -1;
	close(end.fd);
	char line[64];
	int size = snprintf(line, sizeof line, "%ld %ld\n", sent, ended);
	if (write(1, line, size) != size)
		die("write");
	finish(child);
}

int main(int argc, char **argv) {
	prctl(PR_SET_PDEATHSIG, SIGKILL); // when the benchmark is killed, all its processes end
	const char *order = argc > 3 ? argv[1] : "";
	char **next = argv + 2;
	int count = 0, slots = 1;
	long most = 0;
	if (strcmp(order, "run"))
		count = atoi(*next++);
	if (!strcmp(order, "term")) {
		most = atol(*next++);
		slots = atoi(*next++);
		limit = atoi(*next++);
	}
	for (; *next && **next == '-'; next++) {
		proc |= next[0][1] == 'p';
		if (next[0][1] == 'r')
			root = *++next;
	}
	if (!strcmp(order, "run")) {
		int orders = atoi(*next++);
		pid_t child = spawn(next, orders);
		if (orders > 2)
			close(orders);
		printf("%d\n", child);
		fflush(stdout);
		int status;
		waitpid(child, &status, 0);
		return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
	for (int slot = 0; slot < slots; slot++) {
		if (slots > 1 && fork())
			continue;
		if (slots > 1)
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = slot; i < count; i += slots)
			if (most)
				term(next, most);
			else
				start(next);
		fflush(stdout);
		if (slots > 1)
			_exit(0);
	}
	while (wait(NULL) > 0)
		;
	return 0;
}

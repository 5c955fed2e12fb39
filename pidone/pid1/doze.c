// doze: what a pod without tasks has as its process 1, and the way to Python and back.
//
//   doze                        pause: reap, leave on TERM and INT with 0, survive every other signal, never poll
//   doze [-d MS] PROGRAM ARG... the same, and at once (or after MS) ask PROGRAM whether there is a plan
//
// Asking is a child: PROGRAM with PIDONE_STAGE=ask and descriptor 3 for its answer, which is a number of
// milliseconds ("ask again then", 0 for never) and, beside it, the doorbell: a socket on which a byte means
// "ask again now", and whose end means "within RING_SPREAD": a repo that restarts ends a thousand bells.
// Exit code 3 is the other answer: there is a plan. Then this process becomes PROGRAM with PIDONE_STAGE=run,
// by execve: the same pid, children, zombies and pending signals, every signal blocked.
//
// So Python is process 1 only where it has work, and a Python that does not even start costs the pod nothing:
// it is asked again after 1 s to 5 min.
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RING_SPREAD = 30000, RETRY_MAX = 300000, PLAN = 3, NEVER = -1, FILES = 64 };

extern char **environ;

// The variables that Python gets. Others could make it or its loader run other code (PYTHONPATH, LD_PRELOAD), or are
// secrets of the application, which commands of the same user could read in /proc/1/environ.
static void drop_environment(void) {
	static const char *const KEPT[] = {"PIDONE_", "RES_OPTIONS=", "LOCALDOMAIN=", "SSL_CERT_FILE=", "SSL_CERT_DIR="};
	char **kept = environ;
	for (char **entry = environ; *entry; entry++)
		for (unsigned i = 0; i < sizeof KEPT / sizeof *KEPT; i++)
			if (!strncmp(*entry, KEPT[i], strlen(KEPT[i]))) {
				*kept++ = *entry;
				break;
			}
	*kept = NULL;
}

static long long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static unsigned below(unsigned limit) {
	unsigned number = 0;
	getrandom(&number, sizeof number, GRND_NONBLOCK);
	return number % limit;
}

// PROGRAM as a child, its answers on *answer; -1 when there is no process to be had.
static pid_t ask(char **program, int *answer) {
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -1;
	pid_t child = fork();
	if (child == 0) {
		dup2(pair[1], 3);
		putenv("PIDONE_STAGE=ask");
		execv(*program, program);
		_exit(127);
	}
	close(pair[1]);
	*answer = pair[0];
	return child;
}

// The doorbell that came with the answer, or -1; *due becomes the time to ask again.
static int take(int answer, long long *due) {
	char text[16] = {0};
	union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control;
	struct iovec part = {text, sizeof text - 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	if (recvmsg(answer, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) <= 0)
		return -1;
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	int bell = head && head->cmsg_type == SCM_RIGHTS ? *(int *)CMSG_DATA(head) : -1;
	*due = atoi(text) > 0 ? now() + atoi(text) : bell < 0 ? *due : NEVER;
	return bell;
}

int main(int argc, char **argv) {
	sigset_t set;
	sigfillset(&set); // first: the kernel drops what comes to a process 1 that neither handles nor blocks it
	sigprocmask(SIG_SETMASK, &set, NULL);
	syscall(SYS_close_range, 3, ~0U, 0);
	if (getpid() != 1)
		prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); // hostPID, a desk; it stays over execve
	if (chdir("/")) {} // a working directory elsewhere would pin its file system
	drop_environment();
	struct rlimit files, more;
	if (!getrlimit(RLIMIT_NOFILE, &files) && files.rlim_cur < FILES) { // too few for Python
		more = (struct rlimit){FILES, files.rlim_max < FILES ? FILES : files.rlim_max};
		if (setrlimit(RLIMIT_NOFILE, &more)) { // only root raises the hard limit
			more = (struct rlimit){files.rlim_max, files.rlim_max};
			setrlimit(RLIMIT_NOFILE, &more);
		}
	}

	int delayed = argc > 2 && argv[1][0] == '-' && argv[1][1] == 'd';
	char **program = argv + (delayed ? 3 : 1);
	long long due = argc > 1 ? now() + (delayed ? atoi(argv[2]) : 0) : NEVER;
	int retry = 1000, answer = -1;
	pid_t asked = -1;
	int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0) { // no descriptor is left, and stdin is not used
		close(0);
		signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	}
	struct pollfd wait[2] = {{signals, POLLIN, 0}, {-1, POLLIN, 0}};

	for (;;) {
		int status;
		for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
			if (pid != asked)
				continue;
			asked = -1;
			due = now() + retry / 2 + below(retry); // where the answer says nothing else
			if (WIFEXITED(status) && WEXITSTATUS(status) == PLAN) {
				setenv("PIDONE_STAGE", "run", 1);
				execv(*program, program);
			} else if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && (wait[1].fd = take(answer, &due)) >= 0)
				retry = 500;
			close(answer);
			retry = retry < RETRY_MAX / 2 ? retry * 2 : RETRY_MAX;
		}
		if (due != NEVER && asked < 0 && now() >= due) {
			close(wait[1].fd);
			wait[1].fd = -1;
			asked = ask(program, &answer);
			due = asked < 0 ? now() + retry : NEVER;
		}
		long long left = due - now();
		poll(wait, 2, due == NEVER ? -1 : left < 0 ? 0 : left < RETRY_MAX ? (int)left : RETRY_MAX);
		struct signalfd_siginfo info[8]; // all that is pending in one call: with each orphan comes a signal
		int count = read(wait[0].fd, info, sizeof info) / (int)sizeof *info;
		for (int i = 0; i < count; i++)
			if (info[i].ssi_signo == SIGTERM || info[i].ssi_signo == SIGINT)
				_exit(asked > 0 ? kill(asked, SIGKILL) & 0 : 0);
		if (wait[1].revents) {
			due = now() + (recv(wait[1].fd, info, 1, MSG_DONTWAIT) == 1 ? 0 : below(RING_SPREAD));
			close(wait[1].fd);
			wait[1].fd = -1;
		}
	}
}

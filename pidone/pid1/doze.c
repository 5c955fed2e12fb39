// doze: what a pod without tasks has as its process 1, and the way to Python and back.
//
//   doze                        pause: reap, leave on TERM and INT with 0, survive every other signal, never poll
//   doze [-d MS] PROGRAM ARG... the same, and at once (or after MS) ask PROGRAM whether there is a plan
//
// PROGRAM is asked as a child, with PIDONE_STAGE=ask and descriptor 3 for its answer. Its exit code says:
//
//   3      there is a plan. This process becomes PROGRAM with PIDONE_STAGE=run, by execve: it keeps its pid, children,
//          zombies and pending signals, and every signal is blocked.
//   0      wait. With the answer comes the doorbell, a socket on which a byte means "ask again now", and whose end means
//          "within RING_SPREAD": a repo that restarts ends a thousand doorbells. Without it, ask again after a time.
//   5      there is no repo: never ask again.
//   other  nobody answered. Without places to knock at, PROGRAM itself is broken.
//
// The answer consists of texts that end with NUL: the milliseconds to wait at least, then host, port and request of each
// place. Python needs 20 ms of processor time for a question, so while no repo is there doze knocks instead: a child
// sends the request, and PROGRAM is asked as soon as a repo answers.
//
// PIDONE_SNAPSHOT names a file that is executed in place of PROGRAM: PROGRAM as it is after its imports. The child that
// asks is the test of it, since an execve that fails late kills, and process 1 would be the end of the sandbox. After a
// child that a signal or a limit ended, or that could not be executed, PIDONE_SNAPSHOT is the reason, and PROGRAM is
// executed from then on.
//
// Whatever others answer, PROGRAM is asked at growing intervals (spread_ms). Two doorbells that ring soon one after the
// other belong to no repo, and neither do two plans without tasks: PIDONE_HASTE counts the latter over execve, and
// PROGRAM removes it after it had tasks.
//
// A task may have stopped the application. Whatever ended Python, the first act of doze is to let everybody run again.
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
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

enum { PLAN = 3, NOTHING = 5, NEVER = -1 };
enum { RING_SPREAD = 30000, QUIET = 60000, KNOCK_LIMIT = 20, ANSWER_LIMIT = 3 }; // ms, ms, s, s
enum { MOST = 6, MOST_BROKEN = 9, FILES = 64 }; // steps of spread_ms: 16 to 48 s, and 128 to 384 s

#ifndef ASK_LIMIT // a test sets a shorter one
#define ASK_LIMIT 40000 // ms; PROGRAM's own limit is 20 s, which a snapshot that hangs does not get to
#endif

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

// Lets every process of the pod run again. Only process 1 of a PID namespace that is not the machine's may do that:
// the link names the machine's by a fixed number (PROC_PID_INIT_INO).
static void continue_all(void) {
	char name[32] = "";
	if (getpid() == 1 && readlink("/proc/self/ns/pid", name, sizeof name - 1) > 0 && strcmp(name, "pid:[4026531836]"))
		kill(-1, SIGCONT);
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

// The time to wait at the given step of a series: 0 s, 0.5 to 1.5 s, 1 to 3 s and so on.
static int spread_ms(int step) {
	return step ? (250 << step) + below(500 << step) : 0;
}

static int next_step(int step, int most) {
	return step < most ? step + 1 : most;
}

static void become(char **program) {
	const char *snapshot = getenv("PIDONE_SNAPSHOT");
	if (snapshot && *snapshot == '/') {
		execv(snapshot, program);
		if (errno != ENOENT) // an image without a snapshot
			return;
	}
	execv(*program, program);
}

// Stops the use of the snapshot after a child that it could not become; returns whether that was so. The alarm of a
// child that waited for a resolver is no reason.
static int give_up_snapshot(int status) {
	const char *snapshot = getenv("PIDONE_SNAPSHOT");
	int number = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
	if (!snapshot || *snapshot != '/' || (WIFSIGNALED(status) ? number == SIGALRM : number < 126))
		return 0;
	char signal[] = "signal 00", code[] = "exit code 000", *reason = WIFSIGNALED(status) ? signal : code;
	for (char *digit = reason + strlen(reason); *--digit == '0'; number /= 10)
		*digit += number % 10;
	if (signal[7] == '0')
		memmove(signal + 7, signal + 8, 2);
	setenv("PIDONE_SNAPSHOT", reason, 1);
	return 1;
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
		become(program);
		_exit(127);
	}
	close(pair[1]);
	*answer = pair[0];
	return child;
}

// Reads the answer into text, which then ends with NUL. Returns the doorbell that came with it, or -1.
static int take(int answer, char *text, int *size) {
	union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control;
	struct iovec part = {text, *size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int got = recvmsg(answer, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	*size = got > 0 ? got : 0;
	text[*size] = 0;
	struct cmsghdr *head = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
	return head && head->cmsg_type == SCM_RIGHTS ? *(int *)CMSG_DATA(head) : -1;
}

// Whether a repo answers at this address. Anything else that listens there has no header of the repo's.
static int answers(struct addrinfo *address, const char *request) {
	struct timeval limit = {ANSWER_LIMIT, 0};
	int connection = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); // for connect too
	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	char head[1024];
	int size = 0, got = 0;
	if (connect(connection, address->ai_addr, address->ai_addrlen) == 0
	    && send(connection, request, strlen(request), MSG_NOSIGNAL) > 0)
		do {
			size += got;
			head[size] = 0;
		} while (!strstr(head, "\r\n\r\n") && size < (int)sizeof head - 1
		         && (got = recv(connection, head + size, sizeof head - 1 - size, 0)) > 0);
	close(connection);
	return size > 12 && (!memcmp(head + 9, "200", 3) || !memcmp(head + 9, "303", 3) || strcasestr(head, "\npidone-repo:"));
}

// A child that ends with 0 if there is a repo at one of the places, texts that end with NUL.
static pid_t knock(const char *place, const char *end) {
	pid_t child = fork();
	if (child)
		return child;
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	alarm(KNOCK_LIMIT); // a resolver may hang
	while (place < end) {
		const char *host = place, *port = host + strlen(host) + 1, *request = port + strlen(port) + 1;
		if (request >= end)
			break;
		place = request + strlen(request) + 1;
		struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *address;
		if (getaddrinfo(host, port, &hints, &address))
			continue;
		for (; address; address = address->ai_next)
			if (answers(address, request))
				_exit(0);
	}
	_exit(1);
}

int main(int argc, char **argv) {
	sigset_t set;
	sigfillset(&set); // first: the kernel drops what comes to a process 1 that neither handles nor blocks it
	sigprocmask(SIG_SETMASK, &set, NULL);
	continue_all();
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
	const char *word = getenv("PIDONE_HASTE");
	int haste = word && *word >= '0' && *word < '0' + MOST ? *word - '0' : word ? MOST : 0;
	long long due = argc > 1 ? now() + (delayed ? atoi(argv[2]) : spread_ms(haste)) : NEVER, rung = 0;
	int tries = 1, answer = -1, knocking = 0, size = 0;
	pid_t asked = -1;
	char text[2048];
	text[0] = 0;
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
			int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1, pause = spread_ms(tries);
			if (knocking) {
				if (code == 0)
					size = pause = 0; // a repo is there: ask
				knocking = 0;
				tries = next_step(tries, MOST);
			} else {
				size = sizeof text - 1;
				int bell = take(answer, text, &size), told = atoi(text), places = (int)strlen(text) + 1 < size;
				close(answer);
				if (code == PLAN) {
					char next[2] = {'0' + next_step(haste, MOST), 0};
					setenv("PIDONE_HASTE", next, 1);
					setenv("PIDONE_STAGE", "run", 1);
					become(program);
				}
				if (give_up_snapshot(status))
					pause = 0;
				else if (code == 0 && bell >= 0) {
					wait[1].fd = bell;
					rung = now();
					pause = told > 0 ? told : NEVER;
					tries = 1;
				} else {
					pause = code == NOTHING ? NEVER : code == 0 && told > pause ? told : pause;
					tries = next_step(tries, code == 0 || places ? MOST : MOST_BROKEN);
				}
			}
			due = pause == NEVER ? NEVER : now() + pause;
		}
		if (due != NEVER && asked >= 0 && now() >= due) {
			kill(asked, SIGKILL);
			due = NEVER;
		} else if (due != NEVER && now() >= due) {
			close(wait[1].fd);
			wait[1].fd = -1;
			char *places = text + strlen(text) + 1;
			knocking = size > 0 && places < text + size;
			asked = knocking ? knock(places, text + size) : ask(program, &answer);
			due = now() + (asked < 0 ? spread_ms(tries) : ASK_LIMIT);
		}
		long long left = due - now();
		poll(wait, 2, due == NEVER ? -1 : left < 0 ? 0 : left < 300000 ? (int)left : 300000);
		struct signalfd_siginfo info[8]; // all that is pending in one call: with each orphan comes a signal
		int count = read(wait[0].fd, info, sizeof info) / (int)sizeof *info;
		for (int i = 0; i < count; i++)
			if (info[i].ssi_signo == SIGTERM || info[i].ssi_signo == SIGINT)
				_exit(asked > 0 ? kill(asked, SIGKILL) & 0 : 0);
		if (wait[1].revents) {
			if (now() - rung > QUIET)
				haste = 0;
			int pause = spread_ms(haste), ended = recv(wait[1].fd, info, 1, MSG_DONTWAIT) != 1, spread = below(RING_SPREAD);
			due = now() + (ended && spread > pause ? spread : pause);
			haste = next_step(haste, MOST);
			close(wait[1].fd);
			wait[1].fd = -1;
		}
	}
}

// pidone: the program that is started. It is static, so nothing in the environment changes what it does.
//
//   pidone [OPTION...] [--] COMMAND ARG...   process 1 of one container, before the application's command
//   pidone                                   process 1 of a pod: this becomes doze, which asks Python for a plan
//   pidone check, pidone --help, ...         the command line, in Python
//
// Python is started with -I and -S, so it reads no variable of its own and runs no sitecustomize. As process 1 of a pod
// it gets few variables, see doze.c; the rest of the environment belongs to the application.
//
// As process 1 of a container it works as follows. All signals are blocked from the first instruction on, and taken
// one by one by sigtimedwait: no handler, no wakeup while idle, and none is lost. Signals go to the command, and at its
// end to its descendants. There is no kill(-1): `kubectl exec` sessions in the container are not pidone's.
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define main doze
#include "doze.c"
#undef main

enum {
	USAGE = 2, FAILED = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127, // 125 to 127 as in env(1) and timeout(1)
	SIGNALS = 64, PIDS = 1 << 22, // the kernel's limits
	ROUNDS = 100, // of looking for new processes, at most: a fork bomb must not hold this one
	NAMED = 10, // processes in a message
};

// Seconds from TERM to KILL for the processes that the command leaves behind. They fit into Docker's 10 s, after which
// the runtime kills everything and reports 137 instead of the command's exit code.
static const double GRACE_SECONDS = 5, AFTER_KILL_SECONDS = 1, GRACE_MAX_SECONDS = 86400;

static struct {
	int group, verbose, warn;
	unsigned char zero[256]; // exit codes that are reported as 0
	unsigned char signal[SIGNALS + 1]; // the signal to forward for each; 0: none
} options;

static void say(const char *format, ...) {
	char line[4096];
	int length = snprintf(line, sizeof line, "pidone: ");
	va_list words;
	va_start(words, format);
	length += vsnprintf(line + length, sizeof line - length - 1, format, words);
	va_end(words);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	if (write(2, line, length)) {} // stderr may be closed
}

static const char *reason(void) {
	static char text[128];
	snprintf(text, sizeof text, "%s", strerror(errno));
	text[0] = tolower(text[0]);
	return text;
}

// Signals, by system calls: a C library keeps two or three real-time signals for itself, which are forwarded as well.

static const unsigned long EVERY = ~0UL;

static void set_mask(unsigned long mask) {
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
}

static unsigned long bit(int number) {
	return 1UL << (number - 1);
}

// Returns the next signal of a set, or 0 after some seconds. Negative seconds: waits for ever.
static int take_signal(unsigned long set, double seconds) {
	struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
	for (;;) {
		long number = syscall(SYS_rt_sigtimedwait, &set, NULL, seconds < 0 ? NULL : &time, sizeof set);
		if (number > 0)
			return (int)number;
		if (errno != EINTR)
			return 0;
	}
}

static const struct {
	const char *name;
	int number;
} NAMES[] = {
	{"HUP", 1}, {"INT", 2}, {"QUIT", 3}, {"ILL", 4}, {"TRAP", 5}, {"ABRT", 6}, {"BUS", 7}, {"FPE", 8}, {"KILL", 9},
	{"USR1", 10}, {"SEGV", 11}, {"USR2", 12}, {"PIPE", 13}, {"ALRM", 14}, {"TERM", 15}, {"STKFLT", 16}, {"CHLD", 17},
	{"CONT", 18}, {"STOP", 19}, {"TSTP", 20}, {"TTIN", 21}, {"TTOU", 22}, {"URG", 23}, {"XCPU", 24}, {"XFSZ", 25},
	{"VTALRM", 26}, {"PROF", 27}, {"WINCH", 28}, {"IO", 29}, {"POLL", 29}, {"PWR", 30}, {"SYS", 31},
};

// Returns the whole number of a text, or -1.
static int whole(const char *text, int most) {
	if (!isdigit((unsigned char)*text))
		return -1;
	char *end;
	long number = strtol(text, &end, 10);
	return *end || number > most ? -1 : (int)number;
}

// Returns the number of a signal: 15, TERM, SIGTERM, RTMIN+3; 0 for "0"; -1 for anything else.
static int signal_number(const char *text) {
	int number = whole(text, SIGNALS);
	if (number >= 0)
		return number;
	if (!strncasecmp(text, "SIG", 3))
		text += 3;
	if (!strncasecmp(text, "RTMIN", 5)) // 34 for programs that use glibc
		return !text[5] ? 34 : text[5] == '+' && (number = whole(text + 6, 30)) >= 0 ? 34 + number : -1;
	for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
		if (!strcasecmp(text, NAMES[i].name))
			return NAMES[i].number;
	return -1;
}

// Other processes

// Reads the start of a file; returns the length, -1 if that is impossible.
static int read_file(const char *path, char *text, int size) {
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	int length = (int)read(file, text, size - 1);
	close(file);
	text[length > 0 ? length : 0] = 0;
	return length;
}

// Returns 0 for a process that is gone, or that was started from outside of the namespace.
static pid_t parent_of(pid_t pid) {
	char path[32], text[512];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	if (read_file(path, text, sizeof text) <= 0)
		return 0;
	char *end = strrchr(text, ')'); // the name stands in parentheses, and may contain them
	int parent = 0;
	if (end)
		sscanf(end + 1, " %*c %d", &parent);
	return parent;
}

static int is_descendant(pid_t pid) {
	pid_t own = getpid();
	while (pid && pid != own)
		pid = parent_of(pid);
	return pid == own;
}

// Signals a descendant. A pid may have been reused: hold the process first, look at it then.
static void signal_process(pid_t pid, int number) {
	int held = (int)syscall(SYS_pidfd_open, pid, 0);
	if (held < 0 && errno == ESRCH)
		return;
	if (is_descendant(pid)) {
		int both[2] = {number, number == SIGKILL ? 0 : SIGCONT}; // a stopped process takes no TERM
		for (int i = 0; i < 2 && both[i]; i++)
			if (held < 0) // a kernel before 5.3, or a seccomp filter
				kill(pid, both[i]);
			else
				syscall(SYS_pidfd_send_signal, held, both[i], NULL, 0);
	}
	if (held >= 0)
		close(held);
}

// Calls a function for each descendant; returns the number of calls. None where /proc is that of another PID namespace:
// its numbers mean other processes here.
static int each_descendant(int (*call)(pid_t)) {
	char own[16], link[16] = {0};
	snprintf(own, sizeof own, "%d", getpid());
	if (readlink("/proc/self", link, sizeof link - 1) < 0 || strcmp(own, link))
		return 0;
	DIR *folder = opendir("/proc");
	int calls = 0;
	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		pid_t pid = whole(entry->d_name, PIDS - 1);
		if (pid > 0 && pid != getpid() && is_descendant(pid))
			calls += call(pid);
	}
	if (folder)
		closedir(folder);
	return calls;
}

static unsigned char told[PIDS / 8]; // only the pages that are used take memory
static int telling;

static int tell(pid_t pid) {
	if (told[pid / 8] >> pid % 8 & 1)
		return 0;
	told[pid / 8] |= 1 << pid % 8;
	signal_process(pid, telling);
	return 1;
}

// Signals all descendants, also those that are forked meanwhile. Returns false if there was none.
static int signal_all(int number) {
	memset(told, 0, sizeof told);
	telling = number;
	int count = 0;
	for (int round = 0; round < ROUNDS; round++) {
		int calls = each_descendant(tell);
		if (!calls)
			break;
		count += calls;
	}
	return count;
}

static char listed[NAMED * 40];
static int listing;

static int list(pid_t pid) {
	char path[32], name[32];
	snprintf(path, sizeof path, "/proc/%d/comm", pid);
	int length = read_file(path, name, sizeof name);
	if (length <= 0)
		return 0; // it has ended by now
	name[strcspn(name, "\n")] = 0;
	if (listing++ < NAMED)
		snprintf(listed + strlen(listed), sizeof listed - strlen(listed), "%s%s (%d)", *listed ? ", " : "", name, pid);
	return 1;
}

// Reaps. Returns true if no descendant is left: the child of a process that ends becomes a child of this one.
static int none_left(void) {
	pid_t pid;
	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {}
	return pid < 0;
}

static double seconds_now(void) {
	return (double)now() / 1000;
}

static int gone_within(double seconds) {
	double deadline = seconds_now() + seconds;
	while (!none_left()) {
		double left = deadline - seconds_now();
		if (left <= 0)
			return 0;
		take_signal(bit(SIGCHLD), left);
	}
	return 1;
}

// TERM to all descendants that the command left, in whatever session; KILL after the grace period. The kernel would
// kill them at once, so that nothing could be saved. Signals that arrive now are dropped, since the time is bounded.
static void end_descendants(double grace) {
	if (none_left() || !signal_all(SIGTERM) || gone_within(grace))
		return;
	each_descendant(list);
	say("still there %g s after TERM, and killed: %s%s", grace, listed, listing > NAMED ? ", ..." : "");
	signal_all(SIGKILL);
	gone_within(AFTER_KILL_SECONDS); // a process that hangs in the kernel must not keep this one for ever
}

// The terminal

// Makes a process group the foreground group of the terminal, if the group `holder` has the foreground. In the
// background (`pidone -- CMD &`) the terminal stays the shell's.
static void hand_over(pid_t to, pid_t holder) {
	int terminal = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (terminal < 0)
		return;
	if (tcgetpgrp(terminal) == holder)
		tcsetpgrp(terminal, to); // TTOU is blocked, so this works from the background too
	close(terminal);
}

// Stops as the command did when the terminal stopped it, so that a shell sees its job stopped. TSTP and not STOP: the
// kernel ignores TSTP where no parent in the session could continue this process, as in a container.
static void suspend(void) {
	sigset_t pending;
	sigpending(&pending);
	if (getpid() == 1 || sigismember(&pending, SIGCONT))
		return;
	kill(getpid(), SIGTSTP);
	set_mask(EVERY & ~bit(SIGTSTP)); // here it is stopped
	set_mask(EVERY);
}

// The command

static const char *variable(const char *name) {
	size_t length = strlen(name);
	for (char **entry = environ; *entry; entry++)
		if (!strncmp(*entry, name, length) && (*entry)[length] == '=')
			return *entry + length + 1;
	return NULL;
}

// Passes sockets of systemd on: sd_listen_fds(3) takes descriptors for its own pid only.
static void pass_sockets(void) {
	static char own[32];
	const char *pid = variable("LISTEN_PID");
	if (!pid || whole(pid, INT_MAX) != getppid())
		return;
	snprintf(own, sizeof own, "LISTEN_PID=%d", getpid());
	char **kept = environ;
	for (char **entry = environ; *entry; entry++)
		if (!strncmp(*entry, "LISTEN_PID=", 11))
			*kept++ = own;
		else if (strncmp(*entry, "LISTEN_PIDFDID=", 15))
			*kept++ = *entry;
	*kept = NULL;
}

// The OOM score of process 1 of a pod, such as -998, is not meant for an application. Raising it needs no privilege.
static void raise_oom_score(void) {
	char text[16];
	if (read_file("/proc/self/oom_score_adj", text, sizeof text) <= 0 || atoi(text) >= 0)
		return;
	int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (write(file, "0", 1)) {}
	close(file);
}

// Executes a file as execvp(3) does. Returns true if the file is there: then it cannot be executed, and `why` tells.
static int execute(const char *path, char **command, int count, char *why, size_t size) {
	execve(path, command, environ);
	const char *text = reason();
	if (errno == ENOEXEC) { // a script without #!, which shells and tini run
		char *script[count + 2];
		script[0] = "/bin/sh";
		script[1] = (char *)path;
		memcpy(script + 2, command + 1, count * sizeof *script); // with the NULL
		execve(script[0], script, environ);
	} else if (errno == ENOENT || errno == ENOTDIR) {
		if (access(path, F_OK))
			return 0;
		text = "is there, but the interpreter or loader that it asks for is not";
	}
	if (!*why)
		snprintf(why, size, "%s: %s", path, text);
	return 1;
}

// Returns the exit code; not at all if the command could be executed.
static int execute_command(char **command, int count) {
	char why[PATH_MAX + 128] = "", path[PATH_MAX];
	if (strchr(command[0], '/')) {
		if (execute(command[0], command, count, why, sizeof why)) {
			say("%s", why);
			return NOT_EXECUTABLE;
		}
		say("%s: no such file", command[0]);
		return NOT_FOUND;
	}
	const char *search = variable("PATH");
	if (!search)
		search = "/usr/local/bin:/usr/bin:/bin";
	for (const char *folder = search; *command[0] && folder; folder = strchr(folder, ':') ? strchr(folder, ':') + 1 : NULL) {
		int length = (int)strcspn(folder, ":");
		int needed = snprintf(path, sizeof path, "%.*s/%s", length ? length : 1, length ? folder : ".", command[0]);
		if (needed < (int)sizeof path)
			execute(path, command, count, why, sizeof why);
	}
	if (*why) {
		say("%s", why);
		return NOT_EXECUTABLE;
	}
	say("%s: not found in PATH=%s", command[0], search);
	return NOT_FOUND;
}

// The child, from fork to exec. Never returns. It waits until the parent holds nothing: the command could read the
// environment of the parent otherwise.
static void become_command(char **command, int count, pid_t group, const int held[2]) {
	char byte;
	close(held[1]);
	while (read(held[0], &byte, 1) < 0 && errno == EINTR) {}
	setpgid(0, 0); // no session of its own: TSTP could not stop the leader of a session
	hand_over(getpid(), group);
	raise_oom_score();
	pass_sockets();
	// All signals get their default action, also those that were ignored: every signal is forwarded to the command,
	// nohup's HUP as well. First that, then the mask: a signal that arrives in between stays pending, and then acts.
	static const char none[64]; // struct sigaction of the kernel: SIG_DFL, no flags
	for (int number = 1; number <= SIGNALS; number++)
		syscall(SYS_rt_sigaction, number, none, NULL, sizeof EVERY);
	set_mask(0);
	_exit(execute_command(command, count));
}

static void forward(pid_t child, int number, int group) {
	// The child is not reaped before the end of watch(), so its pid is not reused.
	if (group && !kill(-child, number))
		return;
	if (group && errno == EPERM)
		return;
	kill(child, number); // fails for a zombie, or for another uid without CAP_KILL
}

// Reaps all processes that have ended. Returns true with the status if the child ended or was stopped. SIGCHLD coalesces,
// so it tells neither how many nor which.
static int reap(pid_t child, int *status) {
	int found = 0, any;
	for (pid_t pid; (pid = waitpid(-1, &any, WNOHANG | WUNTRACED)) > 0;)
		if (pid == child) {
			*status = any;
			found = 1;
		} else if (options.warn && !WIFSTOPPED(any))
			say("reaped orphan %d", pid);
	return found;
}

// Forwards signals until the command ends. Returns its exit code.
static int watch(pid_t child, pid_t group) {
	for (int number = SIGCHLD;; number = take_signal(EVERY, -1)) {
		int status;
		if (number != SIGCHLD) {
			if (number == SIGCONT)
				// The terminal stopped the whole group, so all of it continues; in the foreground if the shell's fg
				// has put this process there.
				hand_over(child, group);
			int as = options.signal[number];
			if (options.verbose)
				say(as ? "got signal %d, forwards %d" : "got signal %d, forwards none", number, as);
			if (as)
				forward(child, as, options.group || number == SIGCONT);
		} else if (reap(child, &status)) {
			if (WIFEXITED(status))
				return WEXITSTATUS(status);
			if (WIFSIGNALED(status))
				return 128 + WTERMSIG(status);
			int by = WSTOPSIG(status);
			if (by == SIGTSTP || by == SIGTTIN || by == SIGTTOU)
				suspend(); // after STOP somebody else sends CONT to the command alone
		}
	}
}

static double grace_seconds(void) {
	const char *text = variable("PIDONE_GRACE");
	if (!text || !*text)
		return GRACE_SECONDS;
	char *end;
	double seconds = strtod(text, &end);
	if (end != text && !*end && seconds >= 0 && seconds <= GRACE_MAX_SECONDS)
		return seconds;
	// The application starts all the same.
	say("PIDONE_GRACE=%s is no number of seconds from 0 to %g; using %g", text, GRACE_MAX_SECONDS, GRACE_SECONDS);
	return GRACE_SECONDS;
}

// Closes all descriptors but 0, 1 and 2, leaves the working directory, which would pin its file system, and wipes the
// environment, which other processes of the same user could read in /proc/1/environ. The child has its own of all.
static void hold_nothing(char **environment) {
	if (chdir("/")) {}
	for (; *environment; environment++)
		memset(*environment, 0, strlen(*environment));
	if (syscall(SYS_close_range, 3, ~0U, 0)) // a kernel before 5.9, or a seccomp filter
		for (int number = 3; number < 1024; number++)
			close(number);
}

// Process 1 of a container. Returns the exit code.
static int contain(char **command, int count, char **environment) {
	struct sigaction normal = {.sa_handler = SIG_DFL};
	sigaction(SIGCHLD, &normal, NULL); // if CHLD were ignored, the kernel would reap and keep no exit code
	if (getpid() != 1 && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		say("not process 1 and PR_SET_CHILD_SUBREAPER is refused: orphans go to another process");
	double grace = grace_seconds();
	int held[2] = {-1, -1}; // without descriptors the child does not wait
	if (pipe2(held, O_CLOEXEC)) {}
	pid_t group = getpgrp(), child = fork();
	if (child < 0) {
		say("fork: %s", reason());
		return FAILED;
	}
	if (!child)
		become_command(command, count, group, held);
	setpgid(child, child); // the child does it as well: the group exists for -g, whichever comes first
	hold_nothing(environment);
	close(held[0]); // they may be 0 and 1
	close(held[1]); // the command starts
	if (options.verbose)
		say("started %d", child);
	int code = watch(child, group);
	if (options.verbose)
		say("%d ended with %d", child, code);
	hand_over(group, child); // to the shell script that goes on
	end_descendants(grace);
	return options.zero[code] ? 0 : code;
}

// Python

// Started with -I and -S. The packages are in the folder of this program: lib/pythonX.Y beside bin.
static const char BOOT[] =
	"import site, sys\n"
	"prefix = sys.argv.pop(1)\n"
	"sys.argv[0] = prefix + '/bin/pidone'\n"
	"for name in 'site-packages', 'dist-packages':\n"
	"    site.addsitedir('%s/lib/python%d.%d/%s' % (prefix, *sys.version_info[:2], name))\n"
	"sys.path += site.getsitepackages()\n"
	"from pidone.__main__ import main\n"
	"sys.exit(main())\n";

// Returns the command that starts Python with the package, and `count` arguments. NULL if there is no Python.
static char **python_command(char **arguments, int count) {
	static char prefix[PATH_MAX], python[PATH_MAX + 32];
	ssize_t length = readlink("/proc/self/exe", prefix, sizeof prefix - 1);
	prefix[length > 0 ? length : 0] = 0;
	for (int i = 0; i < 2; i++) { // the program and its folder
		char *slash = strrchr(prefix, '/');
		if (slash)
			*slash = 0;
	}
	const char *folders[] = {prefix, "/usr/local", "/usr"};
	for (int i = 0; i < 3; i++) {
		snprintf(python, sizeof python, "%s/bin/python3", folders[i]);
		if (access(python, X_OK))
			continue;
		char **command = calloc(count + 8, sizeof *command), *words[] = {python, "-I", "-S", "-c", (char *)BOOT, prefix};
		if (!command)
			return NULL;
		memcpy(command, words, sizeof words);
		memcpy(command + 6, arguments, count * sizeof *command);
		return command;
	}
	return NULL;
}

// Process 1 of a pod. Never returns.
static int be_process_one(void) {
	drop_environment();
	char **command = python_command(NULL, 0);
	if (!command) {
		say("there is no Python beside this program, so it runs no tasks and waits as pause does; "
		    "to run a command: pidone -- COMMAND");
		return doze(1, (char *[]){"doze", NULL});
	}
	if (variable("PIDONE_DOZE") && access(variable("PIDONE_DOZE"), X_OK))
		execv(*command, command); // without doze, process 1 stays in Python
	int count = 0;
	while (command[count])
		count++;
	char *dozing[count + 2];
	dozing[0] = "doze";
	memcpy(dozing + 1, command, (count + 1) * sizeof *command);
	return doze(count + 1, dozing);
}

static int command_line(char **arguments, int count, unsigned long mask) {
	char **command = python_command(arguments, count);
	set_mask(mask);
	if (command)
		execve(*command, command, environ);
	say("%s needs Python, and there is none beside this program; to run a command: pidone -- %s", arguments[0],
	    arguments[0]);
	return NOT_FOUND;
}

// Sets one option. Returns false, after a message, if its value is wrong.
static int set_option(int option, char *value) {
	int number, other;
	char *colon;
	switch (option) {
	case 'e':
		if ((number = whole(value, 255)) < 0)
			return say("-e %s: expected an exit code, 0 to 255", value), 0;
		return options.zero[number] = 1;
	case 'r':
		if ((colon = strchr(value, ':')))
			*colon = 0;
		number = signal_number(value), other = colon ? signal_number(colon + 1) : -1;
		if (number < 1 || other < 0)
			return say("-r %s%s%s: expected two signals, as in 15:3 or TERM:QUIT; 0 as the second drops the first", value,
			           colon ? ":" : "", colon ? colon + 1 : ""), 0;
		options.signal[number] = (unsigned char)other;
		return 1;
	case 'p':
		if ((number = signal_number(value)) < 1)
			return say("-p %s: expected a signal, as in 15 or TERM", value), 0;
		if (prctl(PR_SET_PDEATHSIG, number, 0, 0, 0))
			return say("-p %s: %s", value, reason()), 0;
		return 1;
	case 'g':
		return options.group = 1;
	case 'c':
		return !(options.group = 0);
	case 'v':
		return options.verbose = 1;
	case 'w':
		return options.warn = 1;
	case 's': // orphans always come to this process
		return 1;
	}
	return 0;
}

int main(int argc, char **argv) {
	unsigned long before = 0;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &EVERY, &before, sizeof EVERY);
	if (argc < 2)
		return be_process_one();
	if (!strcmp(argv[1], "-V")) // dumb-init's
		argv[1] = "--version";
	if (argv[1][0] != '-' || !strcmp(argv[1], "-h") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "--version"))
		return command_line(argv + 1, argc - 1, before);

	static const struct option LONG[] = {
		{"rewrite", required_argument, NULL, 'r'},
		{"single-child", no_argument, NULL, 'c'},
		{"verbose", no_argument, NULL, 'v'},
		{NULL, 0, NULL, 0},
	};
	for (int number = 1; number <= SIGNALS; number++)
		options.signal[number] = (unsigned char)number;
	opterr = 0;
	for (int option; (option = getopt_long(argc, argv, "+:ce:gp:r:svw", LONG, NULL)) != -1;) {
		if (option == '?')
			return say("unknown option %s; the options are -c -e -g -p -r -s -v -w, and those of tini and dumb-init that are "
			           "missing are in docs/entrypoint.md", optopt ? (char[]){'-', (char)optopt, 0} : argv[optind - 1]), USAGE;
		if (option == ':')
			return say("-%c needs a value", optopt), USAGE;
		if (!set_option(option, optarg))
			return USAGE;
	}
	if (optind == argc)
		return say(argc == 2 && !strcmp(argv[1], "--") ? "no command after --" : "no command; write pidone [OPTION...] -- COMMAND"),
		       USAGE;
	return contain(argv + optind, argc - optind, environ);
}

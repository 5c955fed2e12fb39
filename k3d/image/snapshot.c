// snapshot: runs a program, and writes it as an executable at the point where it asks for that. For the image's build.
//
//   snapshot FILE ROOT PROGRAM ARG...     PROGRAM is a dynamic executable with fixed addresses, under ROOT
//
// FILE is a static ELF executable with one segment for each piece of memory, so execve is the whole restore. Pages that
// no process writes belong to the file, and all pods of a node share them. The file's first instructions are the stub
// below, which restores what is not memory: it takes 20 system calls.
//
// PROGRAM asks by lseek(ORDER, the address of a struct order, 0), with one thread and no descriptor above 2. In the
// new process lseek returns 0, and the order's buffer contains the arguments and the environment of that process.
//
// Nothing here knows the C library's structures. All addresses are given out here, and what must not be remembered is
// hidden: the kernel's vdso and rseq areas, brk, and random bytes, which are the same in each build. Features of this
// machine's processor are hidden by the tunables that build.py sets. Of CPython two facts are used, and both are
// checked: the first word of an object, and the state of a string.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define ORDER 0x5aa9UL // a descriptor that does not exist
#define MAGIC "pidone snapshot"
struct order {
	char magic[16];
	uint64_t none, interned, latin, strings; // None, a mortal interned string, "a", and the type of strings
	uint64_t buffer, size; // for arguments and environment; its bytes are zero
	uint64_t count, object[]; // all objects: they become immortal (PEP 683), so that reading them writes nothing
};

// Addresses below 1 GiB. The kernel puts stacks, mappings and the heap of a static executable elsewhere.
#define STUB_TEXT 0x0e000000UL
#define STUB_DATA 0x0e010000UL
#define STACK 0x10000000UL
#define STACK_SIZE 0x800000UL
#define FIRST_MAPPING 0x11000000UL
#define END 0x40000000UL
#define NO_BRK 0x7ffffffff000UL // brk fails above it in every process, and the C library then uses mmap
#define PAGE 4096UL
#define PAGES(size) (((size) + PAGE - 1) & -PAGE)
#define ZERO_RUN (16 * PAGE) // as many zeros are mapped by the stub instead of read from the file
enum { MOST = 1000, CANARIES = 64 };

struct piece { uint64_t start, size, protection; };
struct state { // of the process, for the stub
	uint64_t registers[17]; // in the order in which the stub pops them
	uint64_t fs, tid, robust_list, robust_size, signal_stack[3];
	uint64_t buffer, size;
	uint64_t canaries, canary[CANARIES]; // addresses of the stack protector's word in frames that will return
	uint64_t zeros;
	unsigned char floating[512] __attribute__((aligned(16)));
	struct piece zero[MOST];
};

// The stub: no library, no stack protector, no absolute address but STUB_DATA. It ends with 126 where the process cannot
// be restored, and doze then starts the ordinary Python.
#define STUB static inline __attribute__((always_inline, no_builtin))
STUB long call(long number, long a, long b, long c, long d, long e) {
	long result;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = 0;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
	                 : "rcx", "r11", "memory");
	return result;
}

STUB void must(int good) {
	if (!good)
		call(SYS_exit_group, 126, 0, 0, 0, 0);
}

__attribute__((used, noreturn, section("stub"), no_builtin, no_stack_protector)) void restore(uint64_t *stack) {
	struct state *state = (struct state *)STUB_DATA;
	for (uint64_t i = 0; i < state->zeros; i++) {
		struct piece *zero = state->zero + i;
		long flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
		long at = call(SYS_mmap, zero->start, zero->size, zero->protection, flags | MAP_FIXED_NOREPLACE, -1);
		if (at != (long)zero->start && at != -EEXIST) // before Linux 4.17, and in qemu-user
			at = call(SYS_mmap, zero->start, zero->size, zero->protection, flags | MAP_FIXED, -1);
		must(at == (long)zero->start);
	}
	must(call(SYS_arch_prctl, 0x1002 /* ARCH_SET_FS */, state->fs, 0, 0, 0) == 0);

	// the buffer: its used size, argc, then all arguments and variables
	char *to = (char *)state->buffer + 16, *end = (char *)state->buffer + state->size;
	uint64_t *word = stack + 1;
	for (int lists = 2; lists; word++) {
		if (!*word) {
			lists--;
			continue;
		}
		const volatile char *from = (char *)*word;
		do {
			must(to < end);
			*to++ = *from;
		} while (*from++);
	}
	((uint64_t *)state->buffer)[0] = to - (char *)state->buffer;
	((uint64_t *)state->buffer)[1] = *stack;

	for (; *word; word += 2)
		if (*word == AT_RANDOM) {
			uint64_t canary = *(uint64_t *)word[1] & ~255UL;
			for (uint64_t i = 0; i < state->canaries; i++)
				*(uint64_t *)state->canary[i] = canary;
			*(uint64_t *)(state->fs + 0x28) = canary;
		}
	*(int *)state->tid = call(SYS_set_tid_address, state->tid, 0, 0, 0, 0);
	call(SYS_set_robust_list, state->robust_list, state->robust_size, 0, 0, 0);
	if (state->signal_stack[0])
		call(SYS_sigaltstack, (long)state->signal_stack, 0, 0, 0, 0);
	__asm__ volatile(
		"fxrstor %0\n mov %1, %%rsp\n"
		"pop %%r15\n pop %%r14\n pop %%r13\n pop %%r12\n pop %%rbp\n pop %%rbx\n pop %%r11\n pop %%r10\n"
		"pop %%r9\n pop %%r8\n pop %%rax\n pop %%rcx\n pop %%rdx\n pop %%rsi\n pop %%rdi\n"
		"pop %%rcx\n pop %%rsp\n jmp *%%rcx\n" // a system call leaves nothing in rcx
		: : "m"(state->floating), "r"(state->registers));
	__builtin_unreachable();
}
__asm__(".section stub,\"ax\"\n stub_entry: mov %rsp, %rdi\n xor %ebp, %ebp\n and $-16, %rsp\n call restore\n .text\n");
extern const unsigned char __start_stub[], __stop_stub[], stub_entry[];

// The rest is the tracer.
static pid_t child;
static int memory;
static uint64_t next = FIRST_MAPPING;
static struct state state;

static void fail(const char *format, ...) {
	va_list words;
	va_start(words, format);
	fputs("snapshot: ", stderr);
	vfprintf(stderr, format, words);
	fputc('\n', stderr);
	if (child > 0)
		kill(child, SIGKILL);
	exit(1);
}

static void get(uint64_t address, void *to, size_t size) {
	if (pread(memory, to, size, address) != (ssize_t)size)
		fail("%zu bytes at %lx cannot be read", size, address);
}

static uint64_t word_at(uint64_t address) {
	uint64_t word;
	get(address, &word, sizeof word);
	return word;
}

static void put(uint64_t address, const void *from, size_t size) {
	if (pwrite(memory, from, size, address) != (ssize_t)size)
		fail("%zu bytes at %lx cannot be written", size, address);
}

static void trace(int request, void *data) {
	if (ptrace(request, child, 0, data))
		fail("ptrace: %s", strerror(errno));
}

static FILE *process_file(const char *name) {
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", child, name);
	FILE *file = fopen(path, "r");
	if (!file)
		fail("%s: %s", path, strerror(errno));
	return file;
}

// Makes the child execute one system call where it stands.
static long inject(long number, long a, long b, long c, long d, long e) {
	static const unsigned char code[3] = {0x0f, 0x05, 0xcc}; // syscall, int3
	struct user_regs_struct before, registers;
	unsigned char text[3];
	trace(PTRACE_GETREGS, &before);
	get(before.rip, text, sizeof text);
	put(before.rip, code, sizeof code);
	registers = before;
	registers.rax = number, registers.orig_rax = -1;
	registers.rdi = a, registers.rsi = b, registers.rdx = c, registers.r10 = d, registers.r8 = e, registers.r9 = 0;
	trace(PTRACE_SETREGS, &registers);
	trace(PTRACE_CONT, NULL);
	int status;
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
		fail("system call %ld: status %x", number, status);
	trace(PTRACE_GETREGS, &registers);
	put(before.rip, text, sizeof text);
	trace(PTRACE_SETREGS, &before);
	return registers.rax;
}

// Moves the loader and the first stack to addresses of ours, before the first instruction.
static void arrange(void) {
	struct piece loader[16];
	int pieces = 0;
	char line[512];
	uint64_t stack_end = 0, move = 0;
	FILE *maps = process_file("maps");
	while (fgets(line, sizeof line, maps)) {
		uint64_t start, end;
		sscanf(line, "%lx-%lx", &start, &end);
		if (strstr(line, "[stack]"))
			stack_end = end;
		else if (start > END && !strchr(line, '[') && pieces < 16)
			loader[pieces++] = (struct piece){start, end - start, 0};
	}
	fclose(maps);
	if (!pieces)
		fail("the program has no loader, or is mapped above %lx", END);

	struct user_regs_struct registers;
	trace(PTRACE_GETREGS, &registers);
	uint64_t rip = registers.rip;
	move = FIRST_MAPPING - loader[0].start;
	// the instructions of the calls that move the loader must not be in the loader
	uint64_t scratch = inject(SYS_mmap, STACK - PAGE, PAGE, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1);
	registers.rip = scratch;
	trace(PTRACE_SETREGS, &registers);
	for (int i = 0; i < pieces; i++) {
		uint64_t start = loader[i].start, size = loader[i].size;
		if (inject(SYS_mremap, start, size, size, 3 /* MREMAP_FIXED */, start + move) != (long)(start + move))
			fail("the loader cannot be moved");
		next = PAGES(start + move + size) + 16 * PAGE;
	}
	trace(PTRACE_GETREGS, &registers);
	registers.rip = rip + move;
	trace(PTRACE_SETREGS, &registers);
	inject(SYS_munmap, scratch, PAGE, 0, 0, 0);

	long flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	if (inject(SYS_mmap, STACK, STACK_SIZE, PROT_READ | PROT_WRITE, flags, -1) != (long)STACK)
		fail("no stack at %lx", STACK);
	trace(PTRACE_GETREGS, &registers);
	uint64_t size = stack_end - registers.rsp, to = (STACK + STACK_SIZE - size) & ~15UL, by = to - registers.rsp;
	uint64_t *block = malloc(size), *word = block + 1;
	get(registers.rsp, block, size);
	for (int lists = 2; lists; word++) // arguments and environment
		if (*word)
			*word += by;
		else
			lists--;
	for (Elf64_auxv_t *entry = (void *)word; entry->a_type; entry++)
		switch (entry->a_type) {
		case AT_SYSINFO_EHDR: // the vdso is elsewhere in each process
		case 27: // AT_RSEQ_FEATURE_SIZE
		case 28: // AT_RSEQ_ALIGN
			entry->a_type = AT_IGNORE;
			break;
		case AT_RANDOM:
			memset((char *)block + (entry->a_un.a_val - registers.rsp), 0x5a, 16);
			entry->a_un.a_val += by;
			break;
		case AT_PLATFORM:
		case AT_BASE_PLATFORM:
		case AT_EXECFN:
			entry->a_un.a_val += by;
			break;
		case AT_BASE:
			entry->a_un.a_val += move;
			break;
		case AT_HWCAP: // features of this machine's processor
		case AT_HWCAP2:
			entry->a_un.a_val = 0;
			break;
		case AT_MINSIGSTKSZ: // of a processor with more registers than this one
			if (entry->a_un.a_val < 16384)
				entry->a_un.a_val = 16384;
		}
	put(to, block, size);
	free(block);
	registers.rsp = to;
	trace(PTRACE_SETREGS, &registers);
}

// Marks all objects as immortal: the count of references is not written any more. The last change, since no code of
// Python runs after it.
static void make_immortal(uint64_t order, struct order *head) {
	// Include/refcount.h: 32 bits of count, 16 bits that are unused here, 16 of flags, of which 1 is "immortal"
	const uint64_t COUNT = 0xc0000000, FLAG = 0x0001000000000000, FLAGS = 0xffff000000000000;
	// Include/cpython/unicodeobject.h: PyASCIIObject.state.interned: 1 mortal, 2 immortal, 3 immortal and static
	const uint64_t INTERNED = 32;
	uint64_t none = word_at(head->none);
	if ((int32_t)none >= 0 || !(none & FLAG))
		fail("None is not immortal as it should be: %lx", none);
	if ((word_at(head->interned + INTERNED) & 3) != 1 || (word_at(head->latin + INTERNED) & 3) != 3)
		fail("the state of strings is not where it should be: %lx", word_at(head->interned + INTERNED));

	uint64_t *object = malloc(head->count * sizeof *object), made = 0;
	get(order + sizeof *head, object, head->count * sizeof *object);
	for (uint64_t i = 0; i < head->count; i++) {
		uint64_t word = word_at(object[i]);
		if (word_at(object[i] + 8) == head->strings) {
			uint32_t string = word_at(object[i] + INTERNED);
			if ((string & 3) == 1) {
				string++;
				put(object[i] + INTERNED, &string, sizeof string);
			}
		}
		if ((int32_t)word >= 0) {
			word = (word & FLAGS) | FLAG | COUNT;
			put(object[i], &word, sizeof word);
			made++;
		}
	}
	memset(object, 0, head->count * sizeof *object); // the list is not needed any more
	put(order, object, head->count * sizeof *object);
	free(object);
	printf("snapshot: %lu of %lu objects made immortal\n", made, head->count);
}

static struct piece segment[MOST];
static uint64_t segments;

static void add(struct piece *pieces, uint64_t *count, uint64_t start, uint64_t end, uint64_t protection) {
	struct piece *last = pieces + *count - 1;
	if (*count && last->start + last->size == start && last->protection == protection)
		last->size += end - start;
	else if (*count < MOST)
		pieces[(*count)++] = (struct piece){start, end - start, protection};
	else
		fail("more than %d segments", MOST);
}

static int is_zero(uint64_t address) {
	static const char zeros[PAGE];
	char page[PAGE];
	get(address, page, PAGE);
	return !memcmp(page, zeros, PAGE);
}

// Divides a mapping into segments of the file and pieces that are zero.
static void divide(uint64_t start, uint64_t end, uint64_t protection) {
	for (uint64_t at = start, run; at < end; at = run) {
		int zero = protection & PROT_WRITE && is_zero(at);
		for (run = at + PAGE; run < end && (protection & PROT_WRITE && is_zero(run)) == zero;)
			run += PAGE;
		if (zero && run - at >= ZERO_RUN)
			add(state.zero, &state.zeros, at, run, protection);
		else
			add(segment, &segments, at, run, protection);
	}
}

static void read_mappings(uint64_t stack_pointer) {
	char line[512], mode[5];
	FILE *status = process_file("status");
	while (fgets(line, sizeof line, status))
		if (!strncmp(line, "Threads:", 8) && atoi(line + 8) != 1)
			fail("the process has more than one thread");
	fclose(status);
	FILE *maps = process_file("maps");
	while (fgets(line, sizeof line, maps)) {
		uint64_t start, end;
		sscanf(line, "%lx-%lx %4s", &start, &end, mode);
		int protection = (mode[0] == 'r') | (mode[1] == 'w') << 1 | (mode[2] == 'x') << 2;
		if (strstr(line, "[v") || strstr(line, "[stack]") || !protection)
			continue;
		if (end > END || mode[3] == 's')
			fail("a mapping of the process cannot be restored: %s", line);
		if (start == STACK) { // below the stack pointer and its red zone nothing counts
			uint64_t low = (stack_pointer - 128) & -PAGE;
			add(state.zero, &state.zeros, start, low, protection);
			start = low;
		}
		divide(start, end, protection);
	}
	fclose(maps);
}

static void check_descriptors(void) {
	for (int number = 3; number < 64; number++) {
		char path[64], target[64] = {0};
		snprintf(path, sizeof path, "/proc/%d/fd/%d", child, number);
		if (readlink(path, target, sizeof target - 1) > 0)
			fail("descriptor %d of the process is open: %s", number, target);
	}
}

static void write_all(int file, const void *from, size_t size, uint64_t at) {
	if (pwrite(file, from, size, at) != (ssize_t)size)
		fail("the file cannot be written: %s", strerror(errno));
}

static void write_file(const char *name) {
	static Elf64_Phdr header[MOST + 3];
	int file = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0755), count = 0;
	if (file < 0)
		fail("%s: %s", name, strerror(errno));
	uint64_t offset = PAGES(sizeof(Elf64_Ehdr) + sizeof header), stub = __stop_stub - __start_stub;
	for (uint64_t i = 0; i <= segments; i++) { // by ascending address, as the kernel demands
		if (i == segments || segment[i].start > STUB_TEXT)
			if (!count || header[count - 1].p_vaddr < STUB_TEXT) {
				header[count++] = (Elf64_Phdr){PT_LOAD, PF_R | PF_X, offset, STUB_TEXT, STUB_TEXT, stub, stub, PAGE};
				write_all(file, __start_stub, stub, offset);
				offset += PAGES(stub);
				uint64_t size = offsetof(struct state, zero) + state.zeros * sizeof *state.zero;
				header[count++] = (Elf64_Phdr){PT_LOAD, PF_R, offset, STUB_DATA, STUB_DATA, size, size, PAGE};
				write_all(file, &state, size, offset);
				offset += PAGES(size);
			}
		if (i == segments)
			break;
		struct piece *piece = segment + i;
		int flags = (piece->protection & PROT_READ ? PF_R : 0) | (piece->protection & PROT_WRITE ? PF_W : 0)
		            | (piece->protection & PROT_EXEC ? PF_X : 0);
		header[count++] = (Elf64_Phdr){PT_LOAD, flags, offset, piece->start, piece->start, piece->size, piece->size, PAGE};
		for (uint64_t done = 0; done < piece->size; done += PAGE) {
			char page[PAGE];
			get(piece->start + done, page, PAGE);
			write_all(file, page, PAGE, offset + done);
		}
		offset += piece->size;
	}
	header[count++] = (Elf64_Phdr){PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16};
	Elf64_Ehdr head = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT}, .e_type = ET_EXEC,
		.e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_entry = STUB_TEXT + (stub_entry - __start_stub),
		.e_phoff = sizeof head, .e_ehsize = sizeof head, .e_phentsize = sizeof *header, .e_phnum = count,
		.e_shentsize = sizeof(Elf64_Shdr)};
	write_all(file, &head, sizeof head, 0);
	write_all(file, header, sizeof header, sizeof head);
	if (ftruncate(file, offset) || close(file))
		fail("%s: %s", name, strerror(errno));
	printf("snapshot: %lu segments, %lu pieces of zeros, %lu canaries, %lu kB\n", segments, state.zeros, state.canaries,
	       offset / 1000);
}

static void take(struct user_regs_struct *r, const char *file) {
	struct order order;
	get(r->rsi, &order, sizeof order);
	if (memcmp(order.magic, MAGIC, sizeof order.magic))
		fail("no order at %llx", r->rsi);
	check_descriptors();
	make_immortal(r->rsi, &order);
	state.buffer = order.buffer, state.size = order.size;

	struct user_fpregs_struct floating;
	trace(PTRACE_GETFPREGS, &floating);
	memcpy(state.floating, &floating, sizeof state.floating);
	uint64_t registers[] = {r->r15, r->r14, r->r13, r->r12, r->rbp, r->rbx, 0, r->r10, r->r9, r->r8, 0 /* rax */, 0,
		r->rdx, r->rsi, r->rdi, r->rip, r->rsp};
	memcpy(state.registers, registers, sizeof registers);

	uint64_t canary = word_at(state.fs + 0x28); // the ABI's place
	for (uint64_t at = (r->rsp - 128) & ~7UL; at < STACK + STACK_SIZE; at += 8)
		if (word_at(at) == canary && state.canaries < CANARIES)
			state.canary[state.canaries++] = at;
	if (!state.canaries || state.canaries == CANARIES || !state.tid || !state.robust_list)
		fail("%lu words of the stack protector, tid at %lx, robust list at %lx", state.canaries, state.tid,
		     state.robust_list);
	read_mappings(r->rsp);
	write_file(file);
}

// Starts the program. Its root is ROOT, with this machine's /proc where that is permitted.
static void start(const char *root, char **program) {
	ptrace(PTRACE_TRACEME, 0, 0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	personality(ADDR_NO_RANDOMIZE); // not necessary: equal builds in more cases
	char proc[4096];
	snprintf(proc, sizeof proc, "%s/proc", root);
	if (geteuid() != 0 && unshare(CLONE_NEWUSER))
		fail("unshare: %s; it needs root or user namespaces", strerror(errno));
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)
	    || mount("/proc", proc, NULL, MS_BIND | MS_REC, NULL))
		fprintf(stderr, "snapshot: no /proc: %s; metrics of the process are not rehearsed\n", strerror(errno));
	if (chroot(root) || chdir("/"))
		fail("%s: %s", root, strerror(errno));
	syscall(SYS_close_range, 3, ~0U, 0);
	raise(SIGSTOP);
	execv(*program, program);
	fail("%s: %s", *program, strerror(errno));
}

int main(int argc, char **argv) {
	if (argc < 4)
		fail("usage: snapshot FILE ROOT PROGRAM ARG...");
	setlinebuf(stdout);
	child = fork();
	if (child == 0)
		start(argv[2], argv + 3);
	int status;
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		fail("ptrace is not permitted here");
	trace(PTRACE_SETOPTIONS, (void *)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
	trace(PTRACE_CONT, NULL);
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
		fail("%s does not start: status %x", argv[3], status);
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/mem", child);
	memory = open(path, O_RDWR | O_CLOEXEC);
	if (memory < 0)
		fail("%s: %s", path, strerror(errno));
	arrange();

	uint64_t random_at = 0, random_size = 0;
	long answer = 0;
	int entered = 0, replaced = 0, signal = 0;
	for (;;) {
		ptrace(PTRACE_SYSCALL, child, 0, signal);
		signal = 0;
		if (waitpid(child, &status, __WALL) != child || WIFEXITED(status) || WIFSIGNALED(status))
			fail("the program has ended without a snapshot: status %x", status);
		struct user_regs_struct r;
		trace(PTRACE_GETREGS, &r);
		if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
			signal = status >> 16 ? 0 : WSTOPSIG(status);
			if (signal == SIGSEGV || signal == SIGILL || signal == SIGBUS)
				fail("signal %d at %llx", signal, r.rip);
			continue;
		}
		entered = !entered;
		if (!entered) {
			if (replaced) {
				r.rax = answer;
				trace(PTRACE_SETREGS, &r);
			} else if (random_size && (long)r.rax > 0)
				for (uint64_t i = 0; i < r.rax; i++) {
					static uint64_t number;
					number = number * 6364136223846793005 + 1442695040888963407;
					put(random_at + i, (char *)&number + 7, 1);
				}
			replaced = random_size = 0;
			continue;
		}
		switch (r.orig_rax) {
		case SYS_lseek:
			if (r.rdi == ORDER) {
				take(&r, argv[1]);
				kill(child, SIGKILL);
				return 0;
			}
			break;
		case SYS_mmap:
			if (!(r.r10 & MAP_FIXED)) {
				r.rdi = next, r.r10 |= MAP_FIXED_NOREPLACE;
				next += PAGES(r.rsi);
			}
			break;
		case SYS_mremap:
			if (r.r10 & 1 /* MREMAP_MAYMOVE */) {
				r.r10 |= 2 /* MREMAP_FIXED */, r.r8 = next;
				next += PAGES(r.rdx);
			}
			break;
		case SYS_brk:
		case SYS_rseq: // a known call without effect takes their place
			replaced = 1, answer = r.orig_rax == SYS_brk ? (long)NO_BRK : -ENOSYS;
			r.orig_rax = SYS_getpid;
			break;
		case SYS_getrandom:
			random_at = r.rdi, random_size = r.rsi;
			break;
		case SYS_arch_prctl:
			if (r.rdi == 0x1002 /* ARCH_SET_FS */)
				state.fs = r.rsi;
			break;
		case SYS_set_tid_address:
			state.tid = r.rdi;
			break;
		case SYS_sigaltstack: // of faulthandler, which keeps it
			if (r.rdi)
				get(r.rdi, state.signal_stack, sizeof state.signal_stack);
			break;
		case SYS_set_robust_list:
			state.robust_list = r.rdi, state.robust_size = r.rsi;
			break;
		}
		trace(PTRACE_SETREGS, &r);
	}
}

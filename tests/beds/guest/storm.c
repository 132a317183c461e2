/*
 * A build step that misuses its machine: the static program of the images that the storm tests build FROM scratch.
 *
 * storm NAME SECONDS [FOLDER [COUNT [BYTES]]], where NAME is one of
 *   fork    forks without end                        memory  takes anonymous memory without end
 *   cache   reads a file of COUNT MiB again and again  large   writes one file without end
 *   files   makes COUNT files of BYTES each          burn    COUNT processes compute at nice -20, as SCHED_FIFO if allowed
 *   io      COUNT processes write and fsync
 * It ends after SECONDS if nothing ends it before, and `fork` not before it was refused. It exits 1 if the machine refused it something, and says so on stderr.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_BYTES (1 << 20)
#define MEMORY_BYTES (4 << 20)
#define FILES_PER_FOLDER 1000
#define FILE_MAKERS 2 /* as many as the guest has cores */
#define BLOCKS_PER_FSYNC 16
#define TURNS_PER_LOOK 1000000

struct plan {
    const char *folder;
    long count;
    size_t bytes; /* at most BLOCK_BYTES */
};

static double deadline_s;
static char block[BLOCK_BYTES];
static atomic_long *files_made; /* of all processes */

static int is_over(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9 > deadline_s;
}

static void end_after(double seconds) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    deadline_s = (double)now.tv_sec + (double)now.tv_nsec * 1e-9 + seconds;
}

static int refused(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
}

static int open_file(const char *folder, long number) {
    char path[256];
    snprintf(path, sizeof path, "%s/storm-%ld", folder, number);
    return open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

/* The first process ends after the deadline, once it was refused; its end is the end of all, which are in its PID namespace. */
static int storm_fork(const struct plan *plan) {
    (void)plan;
    pid_t first = getpid();
    int was_refused = 0;
    while (getpid() != first || !was_refused || !is_over()) {
        if (fork() >= 0)
            continue;
        if (getpid() == first && !was_refused)
            was_refused = refused("fork");
        sched_yield();
    }
    return was_refused;
}

static int storm_memory(const struct plan *plan) {
    (void)plan;
    while (!is_over()) {
        void *more = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (more == MAP_FAILED)
            return refused("mmap");
        memset(more, 1, MEMORY_BYTES);
    }
    return 0;
}

static int storm_cache(const struct plan *plan) {
    int fd = open_file(plan->folder, 0);
    if (fd < 0)
        return refused("open");
    for (long number = 0; number < plan->count; number++)
        if (write(fd, block, BLOCK_BYTES) != BLOCK_BYTES)
            return refused("write");
    while (!is_over()) {
        lseek(fd, 0, SEEK_SET);
        while (!is_over() && read(fd, block, BLOCK_BYTES) > 0)
            continue;
    }
    return 0;
}

static int storm_large(const struct plan *plan) {
    int fd = open_file(plan->folder, 0);
    if (fd < 0)
        return refused("open");
    while (!is_over())
        if (write(fd, block, BLOCK_BYTES) < 0)
            return refused("write");
    return 0;
}

/* Makes `count` files in folders of its own, and adds what it has made to `files_made`. */
static int make_files(long number, const struct plan *plan) {
    char path[128];
    long share = plan->count / FILE_MAKERS + (number < plan->count % FILE_MAKERS);
    for (long made = 0; made < share && !is_over(); made++) {
        if (made % FILES_PER_FOLDER == 0) {
            snprintf(path, sizeof path, "%s/%ld-%ld", plan->folder, number, made / FILES_PER_FOLDER);
            if (mkdir(path, 0700) < 0)
                return refused("mkdir");
            if (chdir(path) < 0)
                return refused("chdir");
        }
        snprintf(path, sizeof path, "%ld", made);
        /* An empty file needs no descriptor. */
        if (plan->bytes == 0) {
            if (mknod(path, S_IFREG | 0600, 0) < 0)
                return refused("mknod");
        } else {
            int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            if (fd < 0 || write(fd, block, plan->bytes) != (ssize_t)plan->bytes)
                return refused(fd < 0 ? "open" : "write");
            close(fd);
        }
        atomic_fetch_add(files_made, 1);
    }
    return 0;
}

static int burn(long number, const struct plan *plan) {
    (void)plan;
    const struct sched_param urgent = {.sched_priority = 1};
    if (setpriority(PRIO_PROCESS, 0, -20) < 0 && number == 0)
        refused("nice -20");
    if (sched_setscheduler(0, SCHED_FIFO, &urgent) < 0 && number == 0)
        refused("SCHED_FIFO");
    volatile unsigned long value = 1;
    while (!is_over())
        for (int turn = 0; turn < TURNS_PER_LOOK; turn++)
            value = value * 6364136223846793005UL + 1;
    return 0;
}

static int rewrite(long number, const struct plan *plan) {
    int fd = open_file(plan->folder, number);
    if (fd < 0)
        return refused("open");
    while (!is_over()) {
        lseek(fd, 0, SEEK_SET);
        for (int turn = 0; turn < BLOCKS_PER_FSYNC; turn++)
            if (write(fd, block, BLOCK_BYTES) < 0)
                return refused("write");
        if (fsync(fd) < 0)
            return refused("fsync");
    }
    return 0;
}

static int in_many(long count, int work(long number, const struct plan *plan), const struct plan *plan) {
    for (long number = 0; number < count; number++) {
        pid_t child = fork();
        if (child < 0)
            return refused("fork");
        if (child == 0)
            _exit(work(number, plan));
    }
    int status, code = 0;
    while (wait(&status) > 0)
        code |= status != 0;
    return code;
}

static int storm_burn(const struct plan *plan) { return in_many(plan->count, burn, plan); }

static int storm_files(const struct plan *plan) {
    files_made = mmap(NULL, sizeof *files_made, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (files_made == MAP_FAILED)
        return refused("mmap");
    int code = in_many(FILE_MAKERS, make_files, plan);
    fprintf(stderr, "%ld files\n", atomic_load(files_made));
    return code;
}

static int storm_io(const struct plan *plan) { return in_many(plan->count, rewrite, plan); }

static const struct {
    const char *name;
    int (*run)(const struct plan *plan);
} storms[] = {
    {"fork", storm_fork},   {"memory", storm_memory}, {"cache", storm_cache}, {"large", storm_large},
    {"files", storm_files}, {"burn", storm_burn},     {"io", storm_io},
};

int main(int argc, char **argv) {
    struct plan plan = {.folder = argc > 3 ? argv[3] : "/", .count = argc > 4 ? atol(argv[4]) : 1, .bytes = 0};
    if (argc > 5)
        plan.bytes = (size_t)atol(argv[5]);
    if (argc >= 3 && plan.bytes <= BLOCK_BYTES) {
        end_after(atof(argv[2]));
        memset(block, 1, BLOCK_BYTES);
        for (size_t number = 0; number < sizeof storms / sizeof *storms; number++)
            if (strcmp(argv[1], storms[number].name) == 0)
                return storms[number].run(&plan);
    }
    fprintf(stderr, "usage: storm NAME SECONDS [FOLDER [COUNT [BYTES]]]\n");
    return 2;
}

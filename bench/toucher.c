/* SPDX-License-Identifier: Apache-2.0 */
/*
 * toucher: the program that faults. It stands where a VMM stands: makes RAM of a memfd, registers it
 * MISSING|MINOR before anything touches it, hands uffd and memfd over by Firecracker's handshake (one
 * region, two fds), and then reads random pages one by one, each once, and measures how long every read
 * took.
 *
 * The SAME program drives the floors, ours and the peers: it knows nothing of who serves it, only where
 * the hand-off socket is. Whoever that is, three things are checked, or the figures mean nothing:
 *   - every page carries its stamp (word 0 inside the loop, all words afterwards);
 *   - every timed read took a fault: the kernel counts as many as there were reads, and on memory
 *     registered MISSING|MINOR each of them waits for the handler;
 *   - nothing else was mapped behind our back: pages never touched must not be present at the end.
 *
 * One JSON line on stdout. Exit code 0, 1 when a check failed, 64 usage, 71 when the system refuses
 * something.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "stamp.h"

#define PAGE_BYTES STAMP_PAGE_BYTES
#define MIB_MAX 65536u
#define CONNECT_WAIT_MS 30000
#define PAGEMAP_PRESENT (1ULL << 63)

struct options {
    const char *socket_path;
    uint64_t mib;
    uint64_t touches; /* timed; the warm-up comes before and is not counted */
    uint64_t warm_up;
    uint64_t seed;
    bool populate;    /* fill the memfd before the hand-off: every fault is a minor one on a current page */
    bool wait;        /* after the hand-off say so, and touch nothing until a line comes on stdin */
};

struct memory {
    int memfd;
    int uffd;
    int socket_fd;
    uint8_t *base;
    uint64_t bytes;
    uint64_t pages;
};

struct outcome {
    uint64_t bad_stamps;
    uint64_t faults;
    uint64_t present_untouched;
    uint64_t wall_ns;
};

static _Noreturn void fail_usage(const char *why)
{
    fprintf(stderr,
            "toucher: %s\n"
            "usage: toucher --socket PATH --mib N [--touches N] [--warm-up N] [--seed N]\n"
            "               [--populate] [--wait]\n",
            why);
    exit(64);
}

static _Noreturn void fail_system(const char *what)
{
    fprintf(stderr, "toucher: %s: %s\n", what, strerror(errno));
    exit(71);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t number(const char *text)
{
    char *end = NULL;

    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-')
        fail_usage("not a number");
    return value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"socket", required_argument, NULL, 's'},  {"mib", required_argument, NULL, 'm'},
        {"touches", required_argument, NULL, 't'}, {"warm-up", required_argument, NULL, 'u'},
        {"seed", required_argument, NULL, 'e'},    {"populate", no_argument, NULL, 'p'},
        {"wait", no_argument, NULL, 'w'},          {NULL, 0, NULL, 0},
    };
    struct options options = {.touches = 16000, .warm_up = 500, .seed = 1};
    int name;

    while ((name = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (name) {
        case 's': options.socket_path = optarg; break;
        case 'm': options.mib = number(optarg); break;
        case 't': options.touches = number(optarg); break;
        case 'u': options.warm_up = number(optarg); break;
        case 'e': options.seed = number(optarg); break;
        case 'p': options.populate = true; break;
        case 'w': options.wait = true; break;
        default: fail_usage("unknown option");
        }
    }
    if (optind != argc || options.socket_path == NULL)
        fail_usage("--socket is needed");
    if (options.mib == 0 || options.mib > MIB_MAX)
        fail_usage("--mib is 1 to 65536");
    uint64_t pages = options.mib << 8;
    if (options.touches == 0 || options.warm_up > pages || options.touches > pages - options.warm_up)
        fail_usage("--touches and --warm-up need one page each");
    return options;
}

/* A uffd that also takes faults of the kernel's own accesses, as a VMM's must. */
static int open_uffd(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int uffd;

    if (device >= 0) {
        uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(device);
    } else {
        uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    }
    if (uffd < 0)
        fail_system("userfaultfd");
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM,
    };
    if (ioctl(uffd, UFFDIO_API, &api) < 0)
        fail_system("UFFDIO_API with minor faults on shared memory");
    return uffd;
}

static void populate(const struct memory *memory)
{
    uint64_t words[STAMP_WORDS];

    for (uint64_t page = 0; page < memory->pages; page++) {
        stamp_fill(page, words);
        if (pwrite(memory->memfd, words, PAGE_BYTES, (off_t)(page * PAGE_BYTES)) != PAGE_BYTES)
            fail_system("pwrite to the memfd");
    }
}

static struct memory make_memory(const struct options *options)
{
    struct memory memory = {.bytes = options->mib << 20, .pages = options->mib << 8};

    memory.memfd = memfd_create("bench-ram", MFD_CLOEXEC);
    if (memory.memfd < 0 || ftruncate(memory.memfd, (off_t)memory.bytes) < 0)
        fail_system("memfd");
    void *base = mmap(NULL, memory.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.memfd, 0);
    if (base == MAP_FAILED)
        fail_system("mmap");
    memory.base = base;
    /* EINVAL: a kernel without huge pages. */
    if (madvise(base, memory.bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
        fail_system("MADV_NOHUGEPAGE");
    memory.uffd = open_uffd();
    struct uffdio_register range = {
        .range = {.start = (uint64_t)(uintptr_t)base, .len = memory.bytes},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
    };
    if (ioctl(memory.uffd, UFFDIO_REGISTER, &range) < 0)
        fail_system("UFFDIO_REGISTER");
    if (options->populate)
        populate(&memory);
    return memory;
}

/* The handler may still be starting: try again until it listens. */
static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};

    if (strlen(path) >= sizeof(address.sun_path))
        fail_usage("--socket is too long");
    strcpy(address.sun_path, path);
    for (int waited_ms = 0;; waited_ms += 5) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
            fail_system("socket");
        if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
            return fd;
        if ((errno != ENOENT && errno != ECONNREFUSED) || waited_ms >= CONNECT_WAIT_MS)
            fail_system(path);
        close(fd);
        nanosleep(&pause, NULL);
    }
}

/* Firecracker's handshake in its two-fd form: one sendmsg, JSON without an end mark, [uffd, memfd]. */
static void hand_over(struct memory *memory, const char *path)
{
    char json[256];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    int fds[2] = {memory->uffd, memory->memfd};

    int length = snprintf(json, sizeof(json),
                          "[{\"base_host_virt_addr\":%" PRIu64 ",\"size\":%" PRIu64
                          ",\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]",
                          (uint64_t)(uintptr_t)memory->base, memory->bytes);
    struct iovec part = {.iov_base = json, .iov_len = (size_t)length};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(rights), fds, sizeof(fds));
    memory->socket_fd = connect_to(path);
    if (sendmsg(memory->socket_fd, &message, MSG_NOSIGNAL) != length)
        fail_system("sendmsg of the hand-off");
}

static void wait_for_go(void)
{
    char line[16];

    puts("{\"event\":\"handed_over\"}");
    fflush(stdout);
    if (fgets(line, sizeof(line), stdin) == NULL) {
        fprintf(stderr, "toucher: stdin ended before the word to go\n");
        exit(1);
    }
}

/* A seeded permutation of all pages: nothing is touched twice, and no order helps anybody. */
static uint64_t *shuffled_pages(uint64_t pages, uint64_t seed)
{
    uint64_t *order = malloc(pages * sizeof(*order));

    if (order == NULL)
        fail_system("malloc");
    for (uint64_t at = 0; at < pages; at++)
        order[at] = at;
    for (uint64_t at = pages - 1; at > 0; at--) {
        uint64_t other = stamp_mix(seed * 0x100000001b3u + at) % (at + 1);
        uint64_t kept = order[at];
        order[at] = order[other];
        order[other] = kept;
    }
    return order;
}

static uint64_t faults_taken(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
}

/* The measurement. `took_ns` is filled beforehand, so that writing to it takes no fault inside the loop. */
static void touch(const struct memory *memory, const uint64_t *order, uint64_t count, uint64_t *took_ns,
                  struct outcome *outcome)
{
    uint64_t faults_before = faults_taken();
    uint64_t began_ns = now_ns();

    for (uint64_t at = 0; at < count; at++) {
        const volatile uint64_t *word = (const volatile uint64_t *)(memory->base + order[at] * PAGE_BYTES);
        uint64_t before_ns = now_ns();
        uint64_t first = *word;
        took_ns[at] = now_ns() - before_ns;
        outcome->bad_stamps += first != order[at];
    }
    outcome->wall_ns = now_ns() - began_ns;
    outcome->faults = faults_taken() - faults_before;
}

static void check_whole_pages(const struct memory *memory, const uint64_t *order, uint64_t count,
                              struct outcome *outcome)
{
    for (uint64_t at = 0; at < count; at++) {
        const uint64_t *words = (const uint64_t *)(memory->base + order[at] * PAGE_BYTES);
        for (uint32_t word = 0; word < STAMP_WORDS; word++) {
            if (words[word] != stamp_word(order[at], word)) {
                outcome->bad_stamps++;
                break;
            }
        }
    }
}

static void check_untouched(const struct memory *memory, const uint64_t *order, uint64_t touched,
                            struct outcome *outcome)
{
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    if (pagemap < 0)
        fail_system("/proc/self/pagemap");
    for (uint64_t at = touched; at < memory->pages; at++) {
        uint64_t entry = 0;
        uint64_t index = (uint64_t)(uintptr_t)memory->base / PAGE_BYTES + order[at];
        if (pread(pagemap, &entry, sizeof(entry), (off_t)(index * sizeof(entry))) != sizeof(entry))
            fail_system("/proc/self/pagemap");
        outcome->present_untouched += (entry & PAGEMAP_PRESENT) != 0;
    }
    close(pagemap);
}

static int ascending(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

/* The value below which `per_mille` thousandths of the sorted samples lie. */
static double percentile_us(const uint64_t *sorted_ns, uint64_t count, uint64_t per_mille)
{
    uint64_t at = (count * per_mille + 999) / 1000;

    return (double)sorted_ns[at > 0 ? at - 1 : 0] / 1000.0;
}

static void print_result(uint64_t *took_ns, uint64_t count, const struct outcome *outcome)
{
    uint64_t sum_ns = 0;

    for (uint64_t at = 0; at < count; at++)
        sum_ns += took_ns[at];
    qsort(took_ns, count, sizeof(*took_ns), ascending);
    printf("{\"count\":%" PRIu64 ",\"p50_us\":%.2f,\"p90_us\":%.2f,\"p99_us\":%.2f,\"p999_us\":%.2f,"
           "\"mean_us\":%.2f,\"max_us\":%.2f,\"rate_per_s\":%.0f,\"bad_stamps\":%" PRIu64
           ",\"faults\":%" PRIu64 ",\"present_untouched\":%" PRIu64 "}\n",
           count, percentile_us(took_ns, count, 500), percentile_us(took_ns, count, 900),
           percentile_us(took_ns, count, 990), percentile_us(took_ns, count, 999),
           (double)sum_ns / (double)count / 1000.0, (double)took_ns[count - 1] / 1000.0,
           (double)count * 1e9 / (double)outcome->wall_ns, outcome->bad_stamps, outcome->faults,
           outcome->present_untouched);
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct memory memory = make_memory(&options);
    uint64_t *order = shuffled_pages(memory.pages, options.seed);
    uint64_t longer = options.touches > options.warm_up ? options.touches : options.warm_up;
    uint64_t *took_ns = malloc(longer * sizeof(*took_ns));
    struct outcome warm_up = {0};
    struct outcome outcome = {0};

    if (took_ns == NULL)
        fail_system("malloc");
    memset(took_ns, 0xff, longer * sizeof(*took_ns));
    hand_over(&memory, options.socket_path);
    if (options.wait)
        wait_for_go();
    touch(&memory, order, options.warm_up, took_ns, &warm_up);
    touch(&memory, order + options.warm_up, options.touches, took_ns, &outcome);
    uint64_t touched = options.warm_up + options.touches;
    outcome.bad_stamps += warm_up.bad_stamps;
    check_untouched(&memory, order, touched, &outcome);
    check_whole_pages(&memory, order, touched, &outcome);
    print_result(took_ns, options.touches, &outcome);
    if (outcome.bad_stamps != 0 || outcome.faults < options.touches || outcome.present_untouched != 0)
        return EXIT_FAILURE;
    return EXIT_SUCCESS;
}

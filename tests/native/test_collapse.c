/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry_vm_collapse on the real kernel: a VM whose memory has arrived page by page gets its huge pages back, from
 * outside. What became huge is what smaps says, and the VM reads every page afterwards. Then what each errno of the
 * kernel's call means, and who is refused, and why.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"
#include "client/handle.h"
#include "kernel/collapse.h"
#include "kernel/frames.h"
#include "kernel/uapi.h"

#define PIECE_PAGES UINT64_C(512)
#define PIECES UINT64_C(6)
#define PAGES (PIECES * PIECE_PAGES + 100) /* and a rest that is no whole piece */
#define HOLED_PIECE UINT64_C(2)
#define HOLED_PAGE (HOLED_PIECE * PIECE_PAGES + 77)
#define LOST_PAGE (4 * PIECE_PAGES + 9)

static struct server listener; /* its address; our own server half serves there */
static struct pageferry_server *server;
static struct client_vm vm;
static const uint64_t lost[] = {LOST_PAGE, 1};
static uint32_t lost_count; /* 1: the image has lost that page */

static int64_t image_word(uint64_t page)
{
    return page == HOLED_PAGE ? 0 : (int64_t)page + 1000;
}

/* ------------------------------------------------------------------------------------------------------------- rig */

static bool write_image(int fd)
{
    uint64_t words[REAL_PAGE / 8];
    bool fine = ftruncate(fd, (off_t)(PAGES * REAL_PAGE)) == 0;

    for (uint64_t page = 0; page < PAGES && fine; page++) {
        real_fill(words, 1, (uint64_t)image_word(page));
        fine = page == HOLED_PAGE || pwrite(fd, words, REAL_PAGE, (off_t)(page * REAL_PAGE)) == (ssize_t)REAL_PAGE;
    }
    return fine;
}

static bool serve_image(void)
{
    struct pageferry_server_options options = {.listen_fds = &listener.listen_fd, .listen_fd_count = 1};
    struct pageferry_image_facts facts;
    uint64_t region_pages = PAGES;
    int image = memfd_create("image", MFD_CLOEXEC);
    char error[PAGEFERRY_TEXT_BYTES];
    bool fine;

    fine = image >= 0 && write_image(image) && pageferry_server_open(&options, &server) == 0 &&
           pageferry_image_inspect(image, NULL, NULL, &facts, error, sizeof(error)) == 0 &&
           pageferry_server_add_file(server, CLIENT_IMAGE, image, &facts, &region_pages, 1, lost, lost_count, error,
                                     sizeof(error)) == 0;
    if (image >= 0)
        close(image);
    return fine;
}

/* Processes that play VMs are forked before there are threads. */
static bool prepare(enum real_memory memory)
{
    server_start(&listener);
    listener.elsewhere = true;
    return client_prepare(&vm, memory, PAGES, &listener, false);
}

/* A VM whose memory has arrived; it lets huge pages in if `open_to_them`. */
static bool arrived(enum real_memory memory, bool open_to_them)
{
    bool fine = prepare(memory);

    vm.options.background = 1;
    fine = fine && serve_image() && client_open(&vm) == 0 && client_arm(&vm) &&
           client_wait(&vm, PAGEFERRY_EVENT_COMPLETE);
    if (fine && open_to_them)
        fine = real_do(&vm.real, REAL_ADVISE, 0, PAGES, MADV_HUGEPAGE) == 0;
    return fine;
}

static void end(void)
{
    client_end(&vm);
    pageferry_server_close(server);
    server = NULL;
    server_stop(&listener);
}

static void read_all(void)
{
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQ(real_do(&vm.real, REAL_READ, page, 1, 0), image_word(page));
}

/* ------------------------------------------------------------------------------------------------ huge pages again */

/* The piece with a hole is left alone. Of private memory khugepaged, which a VMM lets in by the same MADV_HUGEPAGE, may
 * fill it at any moment; of shared memory where somebody has set shmem_enabled so. */
static void check_huge(const struct pageferry_collapse *collapse, uint64_t full)
{
    CHECK_EQ(strlen(collapse->error), 0);
    CHECK_EQ(collapse->extents, PIECES);
    CHECK(collapse->full >= full && collapse->huge_before <= collapse->full);
    CHECK(collapse->huge >= collapse->full);
}

static void collapses(enum real_memory memory)
{
    struct pageferry_progress progress = {0};
    struct pageferry_collapse collapse = {.progress = &progress};

    CHECK(arrived(memory, true));
    CHECK_EQ(pageferry_vm_collapse(vm.vm, &collapse), 0);
    check_huge(&collapse, PIECES - 1);
    CHECK(memory == REAL_PRIVATE || (collapse.full == PIECES - 1 && collapse.huge == PIECES - 1));
    CHECK_EQ(progress.done_bytes, PIECES * COLLAPSE_BYTES);
    CHECK_EQ(progress.total_bytes, PIECES * COLLAPSE_BYTES);
    read_all();

    CHECK_EQ(pageferry_vm_collapse(vm.vm, &collapse), 0); /* the VM has filled the hole */
    check_huge(&collapse, PIECES);
    CHECK(collapse.huge_before >= PIECES - 1);
    read_all();
    end();
}

static void test_memfd(void)
{
    collapses(REAL_MEMFD);
}

static void test_tmpfs(void)
{
    collapses(REAL_TMPFS);
}

static void test_private(void)
{
    collapses(REAL_PRIVATE);
}

/* A balloon has taken a page since: its piece is left as it is, and the page stays a hole. */
static void test_given_back_since(void)
{
    struct pageferry_collapse collapse = {0};

    CHECK(arrived(REAL_MEMFD, true));
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, PIECE_PAGES + 5, 1, MADV_REMOVE), 0);
    CHECK_EQ(pageferry_vm_collapse(vm.vm, &collapse), 0);
    check_huge(&collapse, PIECES - 2);
    CHECK_EQ(real_do(&vm.real, REAL_READ, PIECE_PAGES + 5, 1, 0), 0);
    end();
}

/* The registration stands, for the page's sake; around it pieces become huge, its own does not, and it stays lost. */
static void test_poisoned(void)
{
    struct pageferry_collapse collapse = {0};

    lost_count = 1;
    CHECK(arrived(REAL_MEMFD, true));
    CHECK_EQ(vm.event.value, 1);
    for (int passes = 0; passes < 2; passes++) {
        CHECK_EQ(pageferry_vm_collapse(vm.vm, &collapse), 0);
        check_huge(&collapse, PIECES - 2);
        CHECK(collapse.full == PIECES - 2 && collapse.huge == PIECES - 2);
        CHECK_EQ(real_do(&vm.real, REAL_READ, LOST_PAGE, 1, 0), REAL_SIGBUS);
        CHECK_EQ(real_do(&vm.real, REAL_READ, LOST_PAGE + 1, 1, 0), image_word(LOST_PAGE + 1));
    }
    end();
    lost_count = 0;
}

static void *cancel_soon(void *argument)
{
    struct pageferry_progress *progress = argument;

    while (__atomic_load_n(&progress->done_bytes, __ATOMIC_RELAXED) == 0)
        client_moment();
    __atomic_store_n(&progress->cancel, 1, __ATOMIC_RELAXED);
    return NULL;
}

/* Between two pieces, by another thread. Which piece that is, is chance; with `cancel` from the start it is none. */
static void test_cancelled(void)
{
    struct pageferry_progress progress = {.cancel = 1};
    struct pageferry_collapse collapse = {.progress = &progress};
    pthread_t thread;
    int rc;

    CHECK(arrived(REAL_MEMFD, true));
    CHECK_EQ(pageferry_vm_collapse(vm.vm, &collapse), -PF_REASON_CANCELLED);
    CHECK_EQ(collapse.huge, 0);
    progress = (struct pageferry_progress){0};
    CHECK_EQ(pthread_create(&thread, NULL, cancel_soon, &progress), 0);
    rc = pageferry_vm_collapse(vm.vm, &collapse);
    CHECK(rc == 0 || rc == -PF_REASON_CANCELLED);
    pthread_join(thread, NULL);
    read_all();
    end();
}

/* ----------------------------------------------------------------------------------------------------- who may not */

static void refused(int reason, const char *fragment)
{
    struct pageferry_collapse collapse = {0};

    CHECK_EQ(pageferry_vm_collapse(vm.vm, &collapse), -reason);
    CHECK(strstr(collapse.error, fragment) != NULL);
    if (strstr(collapse.error, fragment) == NULL)
        printf("it says: %s\n", collapse.error);
    CHECK_EQ(collapse.huge, 0);
}

static void test_not_while_pages_are_missing(void)
{
    CHECK(prepare(REAL_MEMFD) && serve_image() && client_open(&vm) == 0);
    CHECK(client_arm(&vm));
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 0, PAGES, MADV_HUGEPAGE), 0);
    refused(PF_REASON_WRONG_PHASE, "pages of this VM are missing");
    end();
}

/* A huge page would be dirty as a whole. */
static void test_not_while_it_is_tracked(void)
{
    struct pageferry_collapse collapse = {0};

    CHECK(prepare(REAL_MEMFD));
    vm.options.background = vm.options.handed_on = 1;
    CHECK(serve_image() && client_open(&vm) == 0 && client_arm(&vm) && client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 0, PAGES, MADV_HUGEPAGE), 0);
    refused(PF_REASON_WRONG_PHASE, "a page server tracks");
    CHECK(client_order(&vm, PAGEFERRY_ORDER_LET_GO, 0, 0));
    CHECK(CLIENT_UNTIL(pageferry_vm_collapse(vm.vm, &collapse) == 0));
    CHECK_EQ(collapse.huge, PIECES - 1);
    end();
}

static void test_vmm_that_forbids_them(void)
{
    CHECK(arrived(REAL_MEMFD, false));
    refused(PF_REASON_UNSUPPORTED, "MADV_NOHUGEPAGE");
    end();
}

static void test_vmm_that_is_gone(void)
{
    CHECK(arrived(REAL_MEMFD, true));
    real_kill(&vm.real);
    refused(PF_REASON_NO_VMM, "has exited");
    end();
}

/* Switched off for the whole process, which a VM inherits: said once, before anything is tried in vain. */
static int switched_off(void)
{
    if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) < 0)
        return 1;
    check_bad = 0;
    CHECK(arrived(REAL_MEMFD, true));
    refused(PF_REASON_UNSUPPORTED, "PR_SET_THP_DISABLE");
    end();
    return check_bad;
}

static void test_switched_off_for_the_vmm(void)
{
    CHECK(real_apart(switched_off));
}

/* Address and file offset do not agree by 2 MiB: no huge page of the file fits there. */
static void test_askew(void)
{
    struct pageferry_region halves[2];

    CHECK(prepare(REAL_MEMFD));
    halves[0] = halves[1] = vm.region; /* the file's first 100 pages are the memory's last */
    halves[0].offset_bytes = 100 * REAL_PAGE;
    halves[0].length_bytes = PIECES * PIECE_PAGES * REAL_PAGE;
    halves[1].address += halves[0].length_bytes;
    halves[1].length_bytes = 100 * REAL_PAGE;
    vm.options.regions = halves;
    vm.options.region_count = 2;
    /* The VM has mapped its file otherwise: no page is touched here. */
    CHECK(serve_image() && client_open(&vm) == 0);
    atomic_store(&vm.vm->loop.may_collapse, true);
    refused(PF_REASON_UNSUPPORTED, "askew");
    end();
}

/* ----------------------------------------------------------------------------------------------- the kernel's call */

static void test_what_its_errors_mean(void)
{
    int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    uint8_t *room = mmap(NULL, 3 * COLLAPSE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t piece = ((uintptr_t)room + COLLAPSE_BYTES - 1) / COLLAPSE_BYTES * COLLAPSE_BYTES;
    struct kernel_span span = {.address = piece, .length_bytes = COLLAPSE_BYTES};
    struct collapse_facts facts;

    CHECK(room != MAP_FAILED && pidfd >= 0);
    CHECK_EQ(madvise((void *)(uintptr_t)piece, COLLAPSE_BYTES, MADV_NOHUGEPAGE), 0);
    memset((void *)(uintptr_t)piece, 1, COLLAPSE_BYTES);
    CHECK_EQ(collapse_piece(pidfd, piece), COLLAPSE_REFUSED);
    CHECK_EQ(collapse_look(getpid(), &span, 1, &facts), 0);
    CHECK(facts.barred && facts.huge_bytes == 0 && !facts.pool);
    CHECK_EQ(madvise((void *)(uintptr_t)piece, COLLAPSE_BYTES, MADV_HUGEPAGE), 0);
    CHECK_EQ(collapse_piece(pidfd, piece), COLLAPSE_DONE);
    CHECK_EQ(collapse_look(getpid(), &span, 1, &facts), 0);
    CHECK(!facts.barred);
    CHECK_EQ(facts.huge_bytes, COLLAPSE_BYTES);
    munmap(room, 3 * COLLAPSE_BYTES);
    close(pidfd);
}

static int as_nobody(void)
{
    pid_t parent = getppid();
    int pidfd = (int)syscall(SYS_pidfd_open, parent, 0);
    struct collapse_facts facts;
    struct kernel_span span = {.address = COLLAPSE_BYTES, .length_bytes = COLLAPSE_BYTES};

    if (setgid(65534) < 0 || setuid(65534) < 0)
        return 1;
    return collapse_piece(pidfd, COLLAPSE_BYTES) != COLLAPSE_NOT_ALLOWED ||
           collapse_look(parent, &span, 1, &facts) != -EACCES;
}

static void test_without_the_right(void)
{
    CHECK(real_apart(as_nobody));
}

int main(void)
{
    if (!client_may()) {
        SKIP(test_memfd, "no userfaultfd right");
        return check_done();
    }
    RUN(test_memfd);
    RUN(test_tmpfs);
    RUN(test_private);
    RUN(test_given_back_since);
    RUN(test_poisoned);
    RUN(test_cancelled);
    RUN(test_not_while_pages_are_missing);
    RUN(test_not_while_it_is_tracked);
    RUN(test_vmm_that_forbids_them);
    RUN(test_vmm_that_is_gone);
    RUN(test_switched_off_for_the_vmm);
    RUN(test_askew);
    RUN(test_what_its_errors_mean);
    if (geteuid() == 0)
        RUN(test_without_the_right);
    else
        SKIP(test_without_the_right, "needs root: to give rights up");
    return check_done();
}

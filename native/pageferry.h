/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry.h: the whole C API. Above it somebody decides (Python, or a VMM in C); below it threads move pages.
 *
 * Two halves that never meet: the client half resolves the page faults of VMs on this host, the server half serves
 * the pages of images. Both follow the same rule: ORDERS go down, EVENTS come up, COUNTERS are read on request, and
 * nothing here ever calls back. Each handle belongs to one calling thread at a time.
 *
 * Return values: 0 or a count on success; on failure minus a reason (enum pf_reason in gen/contract.h), never an
 * errno. The sentence that goes with it is in the `error` text of the options, with its remedy.
 *
 * This file stays within the subset that cffi reads: plain declarations, no macros with arguments.
 */
#ifndef PAGEFERRY_H
#define PAGEFERRY_H

#include <stddef.h>
#include <stdint.h>

/* Grows with every change of this file; the Python side refuses a library of another number. */
#define PAGEFERRY_API 3
#define PAGEFERRY_TEXT_BYTES 256
#define PAGEFERRY_PAGE_STATES 6

int pageferry_api(void);
/* Names as the headers below have them; NULL past the end, so that a caller can list them. */
const char *pageferry_page_state_name(uint32_t state);
const char *pageferry_event_name(uint32_t kind);

/* -------------------------------------------------------------------------------------- counters, both halves */

/*
 * Counters and histograms are listed in base/stats.h, once. `index` counts from 0; NULL past the end. A name ends in
 * its unit or in _total; `help` is one sentence.
 */
const char *pageferry_counter_name(uint32_t index);
const char *pageferry_counter_help(uint32_t index);
const char *pageferry_histogram_name(uint32_t index);
const char *pageferry_histogram_help(uint32_t index);
uint32_t pageferry_histogram_buckets(void);
/* The largest value that falls into a bucket (log-linear, eight buckets for each power of two). */
uint64_t pageferry_histogram_limit(uint32_t bucket);

/* ------------------------------------------------------------------------------------------------- client half */

struct pageferry_client; /* one a process: the bulk thread and what the VMs share */
struct pageferry_vm;     /* one VM: its pager thread */

enum pageferry_memory {
    PAGEFERRY_MEMORY_SHARED = 1, /* memfd, tmpfs or hugetlbfs, registered MISSING|MINOR; backing_fd is given */
    PAGEFERRY_MEMORY_PRIVATE = 2 /* private anonymous, huge pages of a pool too; registered MISSING; no backing_fd */
};

/* A contiguous piece of guest memory in the VMM's address space. Multiples of 4096; never overlapping. */
struct pageferry_region {
    uint64_t address;      /* in the VMM's address space */
    uint64_t length_bytes;
    uint64_t offset_bytes; /* in the image, and in the backing file if there is one */
};

struct pageferry_client_options {
    uint32_t bulk_slots; /* messages of bulk in flight between the threads; 0: the default */
    char error[PAGEFERRY_TEXT_BYTES];
};

/*
 * File descriptors are taken over when pageferry_vm_open succeeds (closed by pageferry_vm_close), and stay the
 * caller's when it fails. Strings and the region array are copied.
 */
struct pageferry_vm_options {
    const char *image;        /* name at the page server */
    const char *data_address; /* "host:port" (IPv6 in brackets), "dns:///host:port" or "unix:/path" */
    int uffd;                 /* non-blocking, registered by the VMM */
    int backing_fd;           /* the RAM file, read-write; -1 for private memory */
    int vmm_fd;               /* the hand-off socket; -1 if there is none */
    int vmm_pidfd;            /* readable when the VMM has died; -1 if there is none */
    int vmm_pid;              /* to look at its mappings (smaps, pagemap); 0: cannot be looked at */
    uint32_t memory;          /* enum pageferry_memory */
    uint32_t frames;          /* 1: the VMM speaks frames (kernel/frames.h) on vmm_fd after the hand-off */
    const struct pageferry_region *regions;
    uint32_t region_count;
    uint32_t background;      /* 1: also move pages that nobody has asked for (bulk, and the sweep after arming) */
    uint32_t spin_us;         /* look again for this long before sleeping; 0: never */
    uint32_t handed_on;       /* 1: a page server sees by the same userfaultfd what the VM writes. COMPLETE ends no
                                 registration then, and faults are answered until LET_GO, or close */
    const char *session;      /* NULL: an image that needs none, and then the next three are not looked at */
    const char *token;        /* base64url of its 32 bytes, no padding; never in a text that comes from here */
    uint64_t target;          /* this VM's number, made once for its hand-over; not 0 */
    uint64_t epoch;           /* counted up for each worker; from 1 */
    uint64_t unit_bytes;            /* what the kernel maps at once in the regions: 4096, 2 MiB, 1 GiB; 0: as the RAM file
                                       says, 4096 without one */
    uint32_t without_poison;        /* 1: as on a kernel that has no UFFDIO_POISON */
    uint64_t bandwidth_bytes_per_s; /* of all that comes in, as an interface counts it; 0: paced below the link's
                                       rate. Faults are never held up, background makes room for them */
    uint32_t huge_pages;            /* 1: a VMM that speaks frames is told with COMPLETE to let huge pages in again, for
                                       pageferry_vm_collapse */
    char error[PAGEFERRY_TEXT_BYTES];
};

/* Orders that are answered wait until the image is described, if they come before ATTACHED. */
enum pageferry_order_kind {
    PAGEFERRY_ORDER_ARM = 1,        /* from now on faults are resolved. A live image: only when the newest ROUND had
                                       value 0. Answered by ARMED, or by FAILED */
    PAGEFERRY_ORDER_BACKGROUND = 2, /* value: 0 off, 1 on */
    PAGEFERRY_ORDER_ROUND = 3,      /* before arming, one at a time: read from the server which pages are newer than what
                                       is here. value 1: it opens a new round first; 0: the map as it is, frozen. Asked
                                       again by itself while the server is busy or not there. Answered by ROUND, or by
                                       FAILED */
    PAGEFERRY_ORDER_BANDWIDTH = 4,  /* value: bytes per second, as bandwidth_bytes_per_s */
    PAGEFERRY_ORDER_LET_GO = 5,     /* of a VM that was handed on, after COMPLETE: no page server has it any more, so the
                                       registration ends as that of any other. Without an answer; before, nothing */
    /* The three below: page_count pages from page `value` on, within the image. Answered by DONE, or by FAILED. */
    PAGEFERRY_ORDER_POISON = 6,       /* lost from now on: their bytes leave the memory, an access raises SIGBUS. With them
                                         all of the huge page that they lie in. Also after COMPLETE, as long as the
                                         registration stands: by handed_on, or because something is poisoned */
    PAGEFERRY_ORDER_CLEAR_POISON = 7, /* those of them that are poisoned are fresh memory from now on, zeros, whatever the
                                         source says of them; old bytes never return. UNSUPPORTED: a page of private
                                         memory that was told as POISONED_MAPPED, until the VMM has dropped it */
    PAGEFERRY_ORDER_ZAP = 8           /* their mappings go: the next access faults again. Their data stays, or goes for ever
                                         with PAGEFERRY_ZAP_DROP. By a VMM that speaks frames, in its own address space */
};

#define PAGEFERRY_ZAP_DROP 1 /* flags: the data goes too, the pages read zero from now on */

struct pageferry_order {
    uint32_t kind;
    uint32_t flags; /* ZAP only, else 0 */
    uint64_t value;
    uint64_t page_count; /* of POISON, CLEAR_POISON, ZAP */
    uint64_t cookie;     /* comes back in the event that answers the order */
};

enum pageferry_event_kind {
    PAGEFERRY_EVENT_ATTACHED = 1,    /* the server's image fits this VM; value: its content id */
    PAGEFERRY_EVENT_ARMED = 2,       /* cookie of the order */
    PAGEFERRY_EVENT_POPULATED = 3,   /* before arming: every page is held; again after each ROUND that left something
                                        missing, once nothing is. Of a live image nothing comes before the first ROUND */
    PAGEFERRY_EVENT_COMPLETE = 4,    /* armed, and every page is OWNED, ZERO or POISONED */
    PAGEFERRY_EVENT_PAUSED = 5,      /* no progress, and why: reason, text; goes on by itself */
    PAGEFERRY_EVENT_RESUMED = 6,     /* the pause is over; value: how long it was, ns */
    PAGEFERRY_EVENT_FAILED = 7,      /* before arming: this VM cannot be served; reason, text. With page 1: it can, only
                                        the order with this cookie was refused, and everything is as it was */
    PAGEFERRY_EVENT_EARLY_FAULT = 8, /* a thread of the VMM has waited for arming over a second; page */
    PAGEFERRY_EVENT_POISONED = 9,    /* once a page: page; cookie: its number in this VM's log, from 1 without a gap;
                                        value: bits PAGEFERRY_POISONED_* */
    PAGEFERRY_EVENT_ALARM = 10,      /* something that cannot be, was; as a rule the page is held back; reason, page, text */
    PAGEFERRY_EVENT_VMM_GONE = 11,   /* the VMM has exited: there is nothing left to serve */
    PAGEFERRY_EVENT_ROUND = 12,      /* the map has been read: cookie of the order, value: as_of, page: pages that were
                                        named newer than what was here, digest: the manifest's, see HandOverResponse */
    PAGEFERRY_EVENT_PHASE = 13,      /* the source has told its phase (value), page 1: it asks to cancel; on change */
    PAGEFERRY_EVENT_DONE = 14,       /* cookie of the order; page: pages it changed; ZAP: value: enum pageferry_zap_method */
    PAGEFERRY_EVENT_POISON_CLEARED = 15 /* page, value: so many from there are fresh memory; cookie: number in the log, which
                                           counts POISONED and this together. Both come before the DONE of their order */
};

#define PAGEFERRY_POISONED_WAS_MAPPED 1u /* the guest had it before, and may have read it */
#define PAGEFERRY_POISONED_MAPPED 2u     /* and still has it: nobody here can take the mapping away, the VMM must */
#define PAGEFERRY_POISONED_HELD 4u       /* this kernel cannot poison: who touches it waits, until it is cleared */

struct pageferry_event {
    uint32_t kind;
    uint32_t reason; /* enum pf_reason, or 0 */
    uint64_t cookie;
    uint64_t page;
    uint64_t value;
    uint8_t digest[16];
    char text[PAGEFERRY_TEXT_BYTES];
};

/* The table as it is now, one count a state (enum page_state); a torn count is harmless, they move. */
struct pageferry_pages {
    uint64_t total;
    uint64_t state[PAGEFERRY_PAGE_STATES];
};

struct pageferry_vm_fds {
    int uffd;
    int backing_fd; /* -1: private memory */
    int table_fd;   /* the page table's memfd: pageferry_live_options.arriving_fd */
    int vmm_pidfd;  /* -1: there is none */
};

int pageferry_client_open(struct pageferry_client_options *options, struct pageferry_client **client);
/* Every VM is closed before. */
void pageferry_client_close(struct pageferry_client *client);

/*
 * Checks the hand-off (kind of each fd, regions, what the VMM's mappings show: registered, not locked, no huge
 * pages, nothing present), resolves the address, starts the pager thread, which dials and describes. May block for
 * name resolution. Errors: BAD_REQUEST, MISMATCH, UNSUPPORTED, NOT_ALLOWED, NO_VMM, NO_MEMORY, GOING_AWAY, BUG.
 */
int pageferry_vm_open(struct pageferry_client *client, struct pageferry_vm_options *options,
                      struct pageferry_vm **vm);
/* 0, or minus BUSY when the ring of orders is full. */
int pageferry_vm_order(struct pageferry_vm *vm, const struct pageferry_order *order);
/* 1 and the oldest event, or 0 when there is none. */
int pageferry_vm_event(struct pageferry_vm *vm, struct pageferry_event *event);
/* Readable while there are events; owned by the VM. */
int pageferry_vm_event_fd(struct pageferry_vm *vm);
/* Copies at most `capacity` values in the order of pageferry_counter_name; returns how many there are. */
uint32_t pageferry_vm_counters(struct pageferry_vm *vm, uint64_t *values, uint32_t capacity);
/* Copies one histogram: a count a bucket, then the sum of all values that were observed. */
uint32_t pageferry_vm_histogram(struct pageferry_vm *vm, uint32_t index, uint64_t *values, uint32_t capacity);
void pageferry_vm_pages(struct pageferry_vm *vm, struct pageferry_pages *pages);
/* The states of `count` pages from `first`, a byte each. Returns how many were in the image. */
uint64_t pageferry_vm_states(struct pageferry_vm *vm, uint64_t first, uint64_t count, uint8_t *states);
/* The VM's own, until it is closed: for a page server that the VM is handed on to. */
void pageferry_vm_fds(struct pageferry_vm *vm, struct pageferry_vm_fds *fds);
/* The manifest, summed anew over the table: to be asked after COMPLETE, when the words stand still. Blocks, some ms a GiB.
 * Always 0. */
int pageferry_vm_manifest(struct pageferry_vm *vm, uint8_t digest[16]);
/* The last steps of the pager, as text for a log; returns the bytes written without the final zero. */
size_t pageferry_vm_trace(struct pageferry_vm *vm, char *text, size_t capacity);
/*
 * Stops the thread and closes the fds. The memory was unregistered at COMPLETE, or by LET_GO; before that the VMM's own
 * copy of the uffd keeps its threads waiting, which is what saves the guest.
 */
void pageferry_vm_close(struct pageferry_vm *vm);

/* Progress of a long call; read by another thread than the one that waits. */
struct pageferry_progress {
    uint64_t done_bytes;
    uint64_t total_bytes;
    uint32_t cancel; /* set to 1: give up, minus CANCELLED */
    uint32_t reserved;
};

/* ------------------------------------------------------------- memory: the calling process's, and this machine's */

/*
 * Zap: mappings go, so that the next access faults again. Only the process whose memory it is can do that: a VMM calls
 * this about itself, and the shim does, told by frame. Not on a thread that reads the userfaultfd: where removals are
 * reported, the call waits until that one has been read. docs/zap-table.md: what each way leaves behind.
 *
 * With DROP the data of memory whose pages have not all arrived comes back from the image: to drop pages of a VM that is
 * open here, give it ORDER_ZAP.
 */
enum pageferry_zap_method {
    PAGEFERRY_ZAPPED_BY_DONTNEED = 1,        /* MADV_DONTNEED */
    PAGEFERRY_ZAPPED_BY_DONTNEED_LOCKED = 2, /* MADV_DONTNEED_LOCKED: the memory is locked */
    PAGEFERRY_ZAPPED_BY_REMAP = 3,           /* mapped and registered anew: the VMM's threads stood still, by its word */
    PAGEFERRY_ZAPPED_BY_PUNCH = 4            /* FALLOC_FL_PUNCH_HOLE: the data too, in every mapping */
};

struct pageferry_zap {
    uint64_t address;      /* multiples of what the kernel maps at once there */
    uint64_t length_bytes;
    int backing_fd;        /* the file behind it; -1: private anonymous memory, which loses its data with its mapping, so
                              that only DROP can be asked */
    uint64_t offset_bytes; /* of `address` in the file */
    uint32_t flags;        /* PAGEFERRY_ZAP_DROP */
    int uffd;              /* -1, or: nobody touches the memory meanwhile, and REMAP may be used, registering with this */
    uint64_t done_bytes;   /* out: in steps of 2 MiB at most */
    uint32_t method;       /* out: enum pageferry_zap_method */
    char why[PAGEFERRY_TEXT_BYTES]; /* out: of the method; or what was refused, with the remedy */
};

/* Errors: BAD_REQUEST, UNSUPPORTED, NO_MEMORY, BUG. */
int pageferry_zap(struct pageferry_zap *zap);

/* ----------------------------------------------------------------- client half: huge pages, after all pages are here */

/*
 * Huge pages again, once every page is the guest's: full, aligned pieces of 2 MiB without poison or holes are collapsed
 * from outside. Blocks for about a millisecond a piece, and for up to 2 s before that, until a VMM that was told to let
 * huge pages in again has done so (pageferry_vm_options.huge_pages). Any thread, not while the VM is closed.
 */
struct pageferry_collapse {
    struct pageferry_progress *progress; /* NULL, or where another thread looks; bytes of the pieces */
    uint64_t extents;     /* out: whole pieces of 2 MiB in the regions */
    uint64_t full;        /* out: of these without poison and holes */
    uint64_t huge_before; /* out: mapped as one huge page, as the kernel's own count says (smaps) */
    uint64_t huge;        /* out: the same afterwards */
    char error[PAGEFERRY_TEXT_BYTES]; /* out: why it failed; or why not all that are full became huge, or empty */
};

/* Errors: WRONG_PHASE (not complete, or a page server tracks it), UNSUPPORTED (this memory, or this kernel's settings,
 * with the remedy), NOT_ALLOWED, NO_VMM, CANCELLED, BUG. */
int pageferry_vm_collapse(struct pageferry_vm *vm, struct pageferry_collapse *collapse);

/* ------------------------------------------------------------ what this machine can do: tried, on scratch pages */

enum pageferry_verdict {
    PAGEFERRY_VERDICT_GOOD = 0,
    PAGEFERRY_VERDICT_LESS = 1,    /* goes without it: slower, or a case that cannot be served */
    PAGEFERRY_VERDICT_BAD = 2,     /* no VM can be served like that */
    PAGEFERRY_VERDICT_UNTRIED = 3, /* a fact before it is bad, or it was to be spared */
    PAGEFERRY_VERDICT_FAILED = 4   /* a call that should work answered something unexpected: not the same as absent */
};

#define PAGEFERRY_FACTS_MAX 32

/* What this kernel, this user and this container can do for a VM's memory. */
struct pageferry_fact {
    const char *name;   /* a word */
    const char *help;   /* what it is for */
    const char *remedy; /* what to do; NULL: nothing */
    uint32_t verdict;   /* enum pageferry_verdict */
    char found[PAGEFERRY_TEXT_BYTES];
};

/*
 * device_fd: an open /dev/userfaultfd that was passed on, or -1. spare_pools 1: takes no page from a pool of huge pages,
 * as at a start, when a VMM may be counting on the last one. Some milliseconds; touches nothing of the caller's. Copies
 * at most `capacity`; returns how many there are, at most FACTS_MAX. The last is their sum, "usable".
 */
uint32_t pageferry_probe(int device_fd, uint32_t spare_pools, struct pageferry_fact *facts, uint32_t capacity);

/* ------------------------------------------------------------------------------------------------- server half */

struct pageferry_server;

struct pageferry_server_options {
    const int *listen_fds; /* bound and listening, TCP or unix; duplicated */
    uint32_t listen_fd_count;
    uint32_t threads;      /* workers; 0: one */
    char error[PAGEFERRY_TEXT_BYTES];
};

/* What inspect prints; also the answer of pageferry_server_add_file. */
struct pageferry_image_facts {
    uint64_t content_id;
    uint64_t page_count;
    uint64_t data_pages; /* in the file's data extents, and not all zero */
};

/* What of a file inspect leaves out of the content id: runs, as pairs "first, count", in order, apart. */
struct pageferry_left_out {
    const uint64_t *known; /* from before: they are not read */
    uint32_t known_count;  /* runs */
    uint64_t *found;       /* pages that are lost: their read says EIO */
    uint32_t found_capacity; /* runs; with more of them the file cannot be read */
    uint32_t found_count;
};

int pageferry_server_open(struct pageferry_server_options *options, struct pageferry_server **server);
/*
 * Reads a whole image file once, never its holes: content id and counts. The fd stays the caller's. `progress` may
 * be NULL; `left_out` too: then a lost page is an error. Blocks for as long as the disk takes. Errors: BAD_REQUEST (not a file, not a multiple of 4096, empty),
 * CANCELLED, BUG.
 */
int pageferry_image_inspect(int fd, struct pageferry_progress *progress, struct pageferry_left_out *left_out,
                            struct pageferry_image_facts *facts, char *error, size_t error_bytes);
/*
 * Serves a file under a name from now on. The fd is duplicated; `facts` are those that inspect gave. region_pages
 * add up to facts->page_count. `lost`: runs, as pairs "first, count", that are lost from the beginning. Errors:
 * BAD_REQUEST, OUT_OF_IMAGE (`lost`), ALREADY_ATTACHED (the name is taken), BUG.
 */
int pageferry_server_add_file(struct pageferry_server *server, const char *name, int fd,
                              const struct pageferry_image_facts *facts, const uint64_t *region_pages,
                              uint32_t region_count, const uint64_t *lost, uint32_t lost_count, char *error,
                              size_t error_bytes);

/*
 * What follows, up to the events, may be called by any thread at any time.
 *
 * The memory of a VM that runs, tracked from outside. All fds are duplicated; strings and regions are copied.
 */
struct pageferry_live_options {
    const char *name;
    int uffd;      /* of the VMM, which has registered its memory for write protection, asynchronous */
    int ram_fd;    /* memfd, or a file on tmpfs */
    int vmm_pid;   /* whose /proc/PID/pagemap is read */
    int vmm_pidfd; /* of the same process; -1: there is none */
    int arriving_fd; /* the page table of the fault client that still brings this memory: pages that are not here
                        travel as LATER, never as zeros. -1: all are here */
    const struct pageferry_region *regions; /* in the order of the image, without a gap */
    uint32_t region_count;
    uint64_t content_id;  /* not 0; another one for each VM that ever had this name */
    uint64_t incarnation; /* 1 to INCARNATION_MAX, higher than any before under this content_id */
    uint32_t drops_untold; /* 1: no shim takes the protection off pages that the VMM drops: the final round looks for
                              them (60 ns a page, while the guest stands still) */
    char error[PAGEFERRY_TEXT_BYTES];
};

/* The final round, settled, and the map that nothing changes any more. */
struct pageferry_frozen {
    uint64_t as_of;
    uint64_t dirty_pages; /* named by the final round */
    uint8_t digest[16];   /* the manifest's, see HandOverResponse */
};

struct pageferry_live_state {
    uint64_t as_of; /* newest settled version; its round is 0 before the first */
    uint64_t page_count;
    uint64_t dirty_pages; /* named by the newest settled round */
    uint64_t round_ns;    /* between the two newest; 0: there is only one */
    uint32_t round;       /* of as_of */
    uint32_t frozen;
};

/*
 * Serves it from now on, to its sessions alone. Errors: BAD_REQUEST, UNSUPPORTED, NOT_ALLOWED, NO_VMM, MISMATCH,
 * NO_MEMORY, ALREADY_ATTACHED (the name is taken), BUG.
 */
int pageferry_server_add_live(struct pageferry_server *server, struct pageferry_live_options *options);
/*
 * The guest stands still, its block I/O too: settles the final round and freezes the map. Blocks, some ms a GiB.
 * Asked again: the same answer. Errors: NO_SUCH_IMAGE, BAD_REQUEST (not live), NO_VMM, MISMATCH, BUG.
 */
int pageferry_server_freeze(struct pageferry_server *server, const char *name, struct pageferry_frozen *frozen,
                            char *error, size_t error_bytes);
/* The guest runs here again: rounds may be opened again, the next one names every page. The sessions of the image have
 * lost their rights before. */
int pageferry_server_thaw(struct pageferry_server *server, const char *name);
/*
 * Of an image that was arriving: every page is here, and the fault client is to go. The memory is registered for write
 * protection alone from now on. Errors: NO_SUCH_IMAGE, BAD_REQUEST (not live), WRONG_PHASE (pages are missing, or
 * poisoned: those need somebody who answers for them), NO_VMM, BUG.
 */
int pageferry_server_arrived(struct pageferry_server *server, const char *name);
int pageferry_server_live_state(struct pageferry_server *server, const char *name,
                                struct pageferry_live_state *state);
/*
 * These pages of an image of any kind are lost: they travel as POISON from now on, and their bytes never again. The next
 * round of a live image names them, until it is frozen. What a read finds lost (EIO) joins them by itself. Errors:
 * NO_SUCH_IMAGE, OUT_OF_IMAGE, WRONG_PHASE (frozen), NO_MEMORY.
 */
int pageferry_server_poison(struct pageferry_server *server, const char *name, uint64_t first_page, uint64_t page_count,
                            char *error, size_t error_bytes);
/* Poisoned runs from page *first on, as pairs "first, count", at most `capacity` pairs; *first moves behind the last. The
 * number of pairs; 0: no more. Minus NO_SUCH_IMAGE. */
int pageferry_server_poisoned(struct pageferry_server *server, const char *name, uint64_t *first, uint64_t *runs,
                              uint32_t capacity);
/* An image of any kind is not served any more: its calls end with NO_SUCH_IMAGE, and its memory is given up when the
 * last of them has ended. */
int pageferry_server_remove(struct pageferry_server *server, const char *name);
/*
 * For a VMM that runs without the shim: makes it register these regions of its own memory for asynchronous write
 * protection, through ptrace (x86-64; CAP_SYS_PTRACE, or its user's where Yama lets that). One thread of it stands still
 * for less than a millisecond. Where this fails the VMM goes on as it was.
 * A userfaultfd, the caller's: writes are tracked until its last copy is closed, and this is the only one. Otherwise
 * minus a reason, with a sentence: NOT_ALLOWED, NO_VMM, BUSY (it is stopped), UNSUPPORTED, TOO_SLOW, ALREADY_ATTACHED
 * (somebody tracks it), BAD_REQUEST, NO_MEMORY, BUG. What the shim guards against, nobody does then: docs/handoff.md.
 */
int pageferry_attach(int vmm_pid, int vmm_pidfd, const struct pageferry_region *regions, uint32_t region_count,
                     char *error, size_t error_bytes);
/* A VMM under the shim has been taken: its mmap may return (kernel/frames.h). Errors: NO_VMM. */
int pageferry_handoff_accept(int fd);

/*
 * Sessions: which token may do what with which image. They are the gate's bits and know no phases; the phase is
 * passed on to the target and nothing else. Without a session a live image can be described, and no more.
 */
enum pageferry_right {
    PAGEFERRY_RIGHT_PAGES = 1, /* all of PageService */
    PAGEFERRY_RIGHT_ROUNDS = 2 /* StreamPages{open_round} */
};

struct pageferry_session {
    const char *session; /* [a-z0-9-]{1,63} */
    const char *image;
    uint8_t token_sha256[32];
    uint32_t rights;           /* bits; without PAGES its calls end, and new ones are refused, with WRONG_PHASE */
    uint32_t phase;            /* enum pf_phase; told in FetchPages: at first, with each echo, on change */
    uint32_t cancel_requested;
    uint32_t frozen;           /* 1: manifest_digest is told */
    uint8_t manifest_digest[16];
};

/*
 * New, or changed: who is attached stays bound. Errors: BAD_REQUEST, ALREADY_ATTACHED (the session is of another
 * image), BUSY (SESSIONS_MAX).
 */
int pageferry_server_set_session(struct pageferry_server *server, const struct pageferry_session *session,
                                 char *error, size_t error_bytes);
/* Its calls end with NOT_ALLOWED, as if it had never been. NO_SUCH_IMAGE: it has not. */
int pageferry_server_drop_session(struct pageferry_server *server, const char *session);

/* The newest of each kind and session: what nobody took in time is replaced, but no kind is ever lost. */
enum pageferry_server_event_kind {
    /* A target has opened FetchPages and had none open. value 1: the first ever, to whom the session is bound from
     * now on; 0: it is back, after SILENT or SUPERSEDED. text: its address. */
    PAGEFERRY_SERVER_EVENT_ATTACHED = 1,
    PAGEFERRY_SERVER_EVENT_SUPERSEDED = 2, /* a worker of a higher epoch has taken over */
    PAGEFERRY_SERVER_EVENT_ROUND = 3,      /* settled by a call; value: as_of, page_count: named by it */
    PAGEFERRY_SERVER_EVENT_SILENT = 4,     /* the last FetchPages of the target has ended */
    PAGEFERRY_SERVER_EVENT_LOST = 5        /* of no session: a read has found pages of an image lost. text: its name,
                                              page_count: how many are lost by now, whoever has said so */
};

struct pageferry_server_event {
    uint32_t kind;
    uint32_t reserved;
    uint64_t target;
    uint64_t epoch;
    uint64_t value;
    uint64_t page_count;
    char session[64];
    char text[PAGEFERRY_TEXT_BYTES];
};

/* 1 and the oldest event, or 0 when there is none. */
int pageferry_server_event(struct pageferry_server *server, struct pageferry_server_event *event);
/* Readable while there are events; owned by the server. */
int pageferry_server_event_fd(struct pageferry_server *server);

/* Answer of grpc.health.v1 on the data port: 1 serving, 0 not serving, as a new server is. Not serving, a call that names
 * an image which is not there ends with GOING_AWAY: its client asks again. */
void pageferry_server_health(struct pageferry_server *server, uint32_t serving);
/* No new calls (GOING_AWAY), open calls end with GOING_AWAY once what they owe is answered. */
void pageferry_server_drain(struct pageferry_server *server);
/* Calls of PageService that are open now; 0 after a drain means that nobody loses anything by closing. */
uint32_t pageferry_server_open_calls(struct pageferry_server *server);
uint32_t pageferry_server_counters(struct pageferry_server *server, uint64_t *values, uint32_t capacity);
uint32_t pageferry_server_histogram(struct pageferry_server *server, uint32_t index, uint64_t *values,
                                    uint32_t capacity);
void pageferry_server_close(struct pageferry_server *server);

#endif

/* SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads. */
/*
 * The contract as C: field numbers, enums and paths of proto/pageferry/v1/pages.proto, limits of
 * pageferry/limits.py, reasons of pageferry/reasons.py. Nothing but enums and macros.
 */
#ifndef PAGEFERRY_CONTRACT_H
#define PAGEFERRY_CONTRACT_H

/* Of the package; what we call ourselves on the wire. */
#define PF_VERSION "0.1.0"

#define PF_PATH_DESCRIBE_IMAGE "/pageferry.v1.PageService/DescribeImage"
#define PF_PATH_GET_PAGE "/pageferry.v1.PageService/GetPage"
#define PF_PATH_FETCH_PAGES "/pageferry.v1.PageService/FetchPages"
#define PF_PATH_STREAM_PAGES "/pageferry.v1.PageService/StreamPages"

/* DescribeImageRequest */
#define PF_FIELD_DESCRIBE_IMAGE_REQUEST_IMAGE 1

/* DescribeImageResponse */
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_CONTENT_ID 1
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_PAGE_COUNT 2
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_PAGE_BYTES 3
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_UNIT_PAGES 4
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_REGION_PAGES 5
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_LIVE 6
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_AS_OF 7
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_BATCH_BYTES_MAX 8
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_RUNS_MAX 9
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_WANTED_PAGES_MAX 10
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_URGENT_CALLS_MAX 11
#define PF_FIELD_DESCRIBE_IMAGE_RESPONSE_ENCODINGS 12

/* GetPageRequest */
#define PF_FIELD_GET_PAGE_REQUEST_IMAGE 1
#define PF_FIELD_GET_PAGE_REQUEST_PAGE 2

/* FetchPagesRequest */
#define PF_FIELD_FETCH_PAGES_REQUEST_IMAGE 1
#define PF_FIELD_FETCH_PAGES_REQUEST_ENCODINGS 2
#define PF_FIELD_FETCH_PAGES_REQUEST_RUNS 3
#define PF_FIELD_FETCH_PAGES_REQUEST_HEARTBEAT 4

/* StreamPagesRequest */
#define PF_FIELD_STREAM_PAGES_REQUEST_IMAGE 1
#define PF_FIELD_STREAM_PAGES_REQUEST_SINCE_VERSION 2
#define PF_FIELD_STREAM_PAGES_REQUEST_RUNS 3
#define PF_FIELD_STREAM_PAGES_REQUEST_VERSIONS_ONLY 4
#define PF_FIELD_STREAM_PAGES_REQUEST_OPEN_ROUND 5
#define PF_FIELD_STREAM_PAGES_REQUEST_ENCODINGS 6

/* PageBatch */
#define PF_FIELD_PAGE_BATCH_AS_OF 1
#define PF_FIELD_PAGE_BATCH_RUNS 2
#define PF_FIELD_PAGE_BATCH_ENCODING 3
#define PF_FIELD_PAGE_BATCH_DIGEST 4
#define PF_FIELD_PAGE_BATCH_HEARTBEAT 5
#define PF_FIELD_PAGE_BATCH_PHASE 6
#define PF_FIELD_PAGE_BATCH_CANCEL_REQUESTED 7
#define PF_FIELD_PAGE_BATCH_MANIFEST_DIGEST 8
#define PF_FIELD_PAGE_BATCH_DATA 15

enum pf_run_kind {
    PF_RUN_KIND_UNSPECIFIED = 0,
    PF_RUN_KIND_DATA = 1,
    PF_RUN_KIND_ZERO = 2,
    PF_RUN_KIND_POISON = 3,
    PF_RUN_KIND_LATER = 4,
    PF_RUN_KIND_VERSION = 5
};

enum pf_encoding {
    PF_ENCODING_UNSPECIFIED = 0,
    PF_ENCODING_IDENTITY = 1,
    PF_ENCODING_ZSTD = 2,
    PF_ENCODING_LZ4 = 3
};

enum pf_phase {
    PF_PHASE_UNSPECIFIED = 0,
    PF_PHASE_CREATED = 1,
    PF_PHASE_PRECOPY = 2,
    PF_PHASE_SWITCHOVER = 3,
    PF_PHASE_POSTCOPY = 4,
    PF_PHASE_COMMITTED = 5,
    PF_PHASE_RELEASED = 6,
    PF_PHASE_ABORTED = 7,
    PF_PHASE_LOST = 8
};

enum pf_reason {
    PF_REASON_UNSPECIFIED = 0,
    PF_REASON_BAD_REQUEST = 1,
    PF_REASON_OUT_OF_IMAGE = 2,
    PF_REASON_NO_SUCH_IMAGE = 3,
    PF_REASON_ALREADY_ATTACHED = 4,
    PF_REASON_WRONG_PHASE = 5,
    PF_REASON_SUPERSEDED = 6,
    PF_REASON_MISMATCH = 7,
    PF_REASON_BUSY = 8,
    PF_REASON_NO_MEMORY = 9,
    PF_REASON_GOING_AWAY = 10,
    PF_REASON_TOO_SLOW = 11,
    PF_REASON_UNSUPPORTED = 12,
    PF_REASON_NOT_ALLOWED = 13,
    PF_REASON_CANCELLED = 14,
    PF_REASON_NO_VMM = 15,
    PF_REASON_BUG = 16
};

/* One page, on every wire, in every table: what x86 maps at least. Huge pages are units of many pages. */
#define PF_LIMIT_PAGE_BYTES 4096

/*
 * Page bytes of one batch that we send: large enough that headers and calls do not show (64 pages), small
 * enough that an urgent answer never waits behind more than this on its own thread. Advertised by
 * DescribeImage.
 */
#define PF_LIMIT_BATCH_BYTES_MAX 262144

/*
 * Page bytes of one batch that a client must be able to take from somebody else's server; more is dropped
 * unread.
 */
#define PF_LIMIT_BATCH_BYTES_CAP 1048576

/* Runs in one message, either way: 4096 lone pages is the worst request that a fault storm makes. */
#define PF_LIMIT_RUNS_MAX 4096

/* A whole request before decoding. 4096 runs with page numbers below 2^35 fit. */
#define PF_LIMIT_REQUEST_BYTES_MAX 65536

/*
 * A whole answer before decoding: bytes at the cap, RUNS_MAX fours of the longest varints, and the small
 * fields.
 */
#define PF_LIMIT_BATCH_MESSAGE_BYTES_MAX 1213440

/* Name of an image at a page server. */
#define PF_LIMIT_IMAGE_NAME_BYTES_MAX 128

/* Pages of an image: 4 TiB. A page table of 8 bytes a page then takes 8 GiB; nobody has asked for more. */
#define PF_LIMIT_IMAGE_PAGES_MAX 1073741824

/* Regions of one VM's memory. QEMU and Firecracker have up to four; hot-plug slots make more. */
#define PF_LIMIT_REGIONS_MAX 64

/* Incarnation and round of every page of an image that never changes: the first of each. */
#define PF_LIMIT_IMMUTABLE_VERSION 4294967297

/*
 * Pages asked and unanswered on one FetchPages call. A VM has one fault a vCPU; this leaves room for 4096
 * of them.
 */
#define PF_LIMIT_WANTED_PAGES_MAX 4096

/*
 * FetchPages calls of one session: a worker's own, those that a lost link left half-open, and some for
 * tools.
 */
#define PF_LIMIT_URGENT_CALLS_MAX 8

/*
 * Pages in one answer of FetchPages: 64 KiB are on a 2 Gbit/s link for 0.3 ms, the longest one waits for a
 * neighbour.
 */
#define PF_LIMIT_URGENT_BATCH_PAGES_MAX 16

/*
 * Calls open at once on one connection (SETTINGS_MAX_CONCURRENT_STREAMS). A client of ours needs two
 * dozen.
 */
#define PF_LIMIT_STREAMS_MAX 128

/*
 * Connections of one page server; each costs its buffers and at most one batch a stream. A 65th is closed
 * unread.
 */
#define PF_LIMIT_CONNECTIONS_MAX 64

/* Connections that wait in the kernel to be accepted: as many as may be open. */
#define PF_LIMIT_LISTEN_BACKLOG_MAX 64

/*
 * All header fields of one call, as HTTP/2 counts them (32 bytes more for each). The library's own limit
 * is 4 GiB.
 */
#define PF_LIMIT_METADATA_BYTES_MAX 16384

/* Largest HTTP/2 frame that we send or take. Larger ones gain nothing and let an urgent frame wait longer. */
#define PF_LIMIT_FRAME_BYTES_MAX 16384

/* Read at once from a socket: fits the L2 cache; more gains nothing. */
#define PF_LIMIT_READ_BYTES_MAX 131072

/*
 * Window of each stream that a client grants (SETTINGS_INITIAL_WINDOW_SIZE). The HTTP/2 default of 64 KiB
 * costs two thirds of bulk; megabytes make the kernel's queue, in which an urgent page waits behind bulk,
 * as long.
 */
#define PF_LIMIT_STREAM_WINDOW_BYTES 262144

/* Window of the whole connection: some streams may stall without stopping the others. */
#define PF_LIMIT_CONNECTION_WINDOW_BYTES 1048576

/*
 * What one connection may write in one turn of its loop. Without it an urgent page waits 2.6 ms or longer
 * behind bulk on loopback and 17 ms on a 2 Gbit/s link.
 */
#define PF_LIMIT_WRITE_BUDGET_BYTES 65536

/* TCP_NOTSENT_LOWAT: bytes that may lie unsent in the kernel; what lies there can no longer be overtaken. */
#define PF_LIMIT_NOTSENT_LOWAT_BYTES 32768

/* A connection that has opened no call for this long after it was accepted is closed. */
#define PF_LIMIT_FIRST_REQUEST_MS 10000

/*
 * Control frames (PING, SETTINGS, RST_STREAM, PRIORITY, empty DATA) that a connection may send at once,
 * and regains in a second; beyond that it is a flood and the connection is closed.
 */
#define PF_LIMIT_FLOOD_FRAMES_MAX 1000
#define PF_LIMIT_FLOOD_FRAMES_PER_S 330

/* Name of a session: a Job's uid fits, and a DNS label. */
#define PF_LIMIT_SESSION_NAME_BYTES_MAX 63

/* A session's token before base64url: 256 random bits. */
#define PF_LIMIT_TOKEN_BYTES 32

/* Sessions that a page server keeps, those that have ended included: for a retry to find its outcome. */
#define PF_LIMIT_SESSIONS_MAX 256

/* Incarnations of one image: 24 bits of its versions. */
#define PF_LIMIT_INCARNATION_MAX 16777215

/* A device state: QEMU's is below 1 MiB; much more means that RAM is in it. */
#define PF_LIMIT_DEVICE_STATE_BYTES_MAX 16777216

/* One piece of it on the control port, with room for the other fields below CONTROL_MESSAGE_BYTES_MAX. */
#define PF_LIMIT_DEVICE_STATE_PIECE_BYTES 32768

/*
 * Bulk is paced to this share of what the link was seen to bring, so that an urgent page finds the queues
 * on the way empty. 80 % gives the shortest faults, and a total a quarter longer.
 */
#define PF_LIMIT_PACE_PERCENT 95

/*
 * A client sends a heartbeat on its FetchPages call this often: it proves the server's page thread, not
 * the transport.
 */
#define PF_LIMIT_HEARTBEAT_INTERVAL_MS 1000

/* Silence on the urgent call after which a client dials anew: three heartbeats that came back from nobody. */
#define PF_LIMIT_LINK_SILENT_MS 3000

/*
 * Silence after which a server ends the call of a session, and a client gives a bulk connection up: its
 * ranges have no heartbeat, and a slow disk or link may hold them back for seconds.
 */
#define PF_LIMIT_HEARTBEAT_TIMEOUT_MS 10000

/* A connection that is not there after this long of dialing is dialed anew. */
#define PF_LIMIT_DIAL_TIMEOUT_MS 5000

/*
 * Bytes sent and not acknowledged by the peer's kernel for this long end the connection
 * (TCP_USER_TIMEOUT).
 */
#define PF_LIMIT_TCP_USER_TIMEOUT_MS 10000

/*
 * A link down for this long is worth telling: the session shows PAUSED with the reason. Faults wait
 * meanwhile.
 */
#define PF_LIMIT_LINK_PAUSE_MS 10000

/*
 * Back-off between dials of a lost link, doubled each time: a restarted server is found at once, a dead
 * one costs little.
 */
#define PF_LIMIT_REDIAL_MIN_MS 50
#define PF_LIMIT_REDIAL_MAX_MS 2000

/*
 * Back-off before a page is asked again that was answered LATER, or whose bytes did not agree with their
 * digest.
 */
#define PF_LIMIT_ASK_AGAIN_MIN_MS 10
#define PF_LIMIT_ASK_AGAIN_MAX_MS 1000

/* What a server puts into pageferry-retry-after-ms with BUSY. */
#define PF_LIMIT_BUSY_RETRY_MS 100

/* A resolution that found no memory is tried again this often. */
#define PF_LIMIT_FULL_RETRY_MS 50

/*
 * Pages of one bulk call while faults come: the range follows the last fault, so a long one is soon out of
 * place.
 */
#define PF_LIMIT_BULK_RANGE_PAGES 16

/* Pages of one bulk call while nobody waits: one full batch. */
#define PF_LIMIT_BULK_RANGE_IDLE_PAGES 64

/* Bulk calls open at once while nobody waits: enough to cover a round trip of 2 ms at 1 GB/s. */
#define PF_LIMIT_BULK_RANGES_IN_FLIGHT 8

/*
 * And while faults come, as long as the link's rate is not known: an urgent page waits behind what is
 * under way. One range at a time leaves the link free between two of them, which paces bulk by itself (1
 * Gbit/s: median fault 0.1 ms, with eight 1.0 ms).
 */
#define PF_LIMIT_BULK_RANGES_GENTLE_MAX 1

/* While faults come and a pace is kept: enough that the link need not wait for the next to be asked. */
#define PF_LIMIT_BULK_RANGES_PACED_MAX 4

/* Faults count as "coming" until none has come for this long. */
#define PF_LIMIT_BULK_QUIET_MS 20

/* Messages of bulk between the bulk thread and the pagers, in a pool that is allocated once. */
#define PF_LIMIT_BULK_SLOTS 16

/* The JSON of a hand-off: 64 regions need 8 KiB. */
#define PF_LIMIT_HANDOFF_BYTES_MAX 65536

/* From the VMM's connection to its complete hand-off. */
#define PF_LIMIT_HANDOFF_TIMEOUT_MS 5000

/*
 * How long the shim waits, with the VMM's first mmap held back, for the client's word that it pages this
 * VM.
 */
#define PF_LIMIT_SHIM_ACCEPT_MS 30000

/*
 * A thread of the VMM that has waited for arming this long is reported: the VMM touched its memory too
 * early.
 */
#define PF_LIMIT_EARLY_FAULT_MS 1000

/* One message on a control port. */
#define PF_LIMIT_CONTROL_MESSAGE_BYTES_MAX 65536

/* WatchSessions: asked interval 0 means the first, anything below the second is raised to it. */
#define PF_LIMIT_WATCH_INTERVAL_MS 1000
#define PF_LIMIT_WATCH_INTERVAL_MIN_MS 100

/* From SIGTERM to the end, calls in work included; below the 30 s that Kubernetes gives. */
#define PF_LIMIT_DRAIN_TIMEOUT_MS 20000

/* Worker threads of the page server's data port. One saturates a 10 Gbit/s link. */
#define PF_LIMIT_SERVER_THREADS_MAX 64

/* X(number, NAME, number of the gRPC status, "what it means") */
#define PF_REASONS(X) \
    X(1, BAD_REQUEST, 3, "what was asked or handed over is malformed") \
    X(2, OUT_OF_IMAGE, 11, "a page past the end of the image was named") \
    X(3, NO_SUCH_IMAGE, 5, "there is no image or session of this name") \
    X(4, ALREADY_ATTACHED, 6, "the session has another target, or the name another meaning") \
    X(5, WRONG_PHASE, 9, "the session is not in a phase that allows this") \
    X(6, SUPERSEDED, 10, "a newer worker has taken over this VM") \
    X(7, MISMATCH, 9, "the two ends disagree on layout, content, versions or digests") \
    X(8, BUSY, 8, "a limit is reached") \
    X(9, NO_MEMORY, 8, "the tmpfs, the memory limit or the pool of huge pages is full") \
    X(10, GOING_AWAY, 14, "the other end is not reachable, drains or restarts") \
    X(11, TOO_SLOW, 4, "nothing was heard in time") \
    X(12, UNSUPPORTED, 12, "this kernel, VMM or peer cannot do what is needed") \
    X(13, NOT_ALLOWED, 7, "a right is missing") \
    X(14, CANCELLED, 1, "it was cancelled") \
    X(15, NO_VMM, 9, "the VMM is not there yet, or gone") \
    X(16, BUG, 13, "a fault of ours: please report it with the log")

#endif

# SPDX-License-Identifier: Apache-2.0
"""Every limit and every default, each with its reason, written once.

proto/generate.py reads this file: each name that does not begin with DEFAULT_ becomes PF_LIMIT_<name> in
native/gen/contract.h, with the comment above it. A limit is a duty towards the other end: it is checked
before anything is allocated, and crossing it is an error with a reason, never a crash. Units are the last
word of a name.
"""

from typing import Final

# ----------------------------------------------------------------------------------------- pages and messages

# One page, on every wire, in every table: what x86 maps at least. Huge pages are units of many pages.
PAGE_BYTES: Final = 4096

# Page bytes of one batch that we send: large enough that headers and calls do not show (64 pages), small
# enough that an urgent answer never waits behind more than this on its own thread. Advertised by
# DescribeImage.
BATCH_BYTES_MAX: Final = 262_144

# Page bytes of one batch that a client must be able to take from somebody else's server; more is dropped
# unread.
BATCH_BYTES_CAP: Final = 1_048_576

# Runs in one message, either way: 4096 lone pages is the worst request that a fault storm makes.
RUNS_MAX: Final = 4096

# A whole request before decoding. 4096 runs with page numbers below 2^35 fit.
REQUEST_BYTES_MAX: Final = 65_536

# A whole answer before decoding: bytes at the cap, RUNS_MAX fours of the longest varints, and the small
# fields.
BATCH_MESSAGE_BYTES_MAX: Final = BATCH_BYTES_CAP + RUNS_MAX * 4 * 10 + 1024

# Name of an image at a page server.
IMAGE_NAME_BYTES_MAX: Final = 128

# Pages of an image: 4 TiB. A page table of 8 bytes a page then takes 8 GiB; nobody has asked for more.
IMAGE_PAGES_MAX: Final = 1 << 30

# Regions of one VM's memory. QEMU and Firecracker have up to four; hot-plug slots make more.
REGIONS_MAX: Final = 64

# Incarnation and round of every page of an image that never changes: the first of each.
IMMUTABLE_VERSION: Final = (1 << 32) | 1

# ----------------------------------------------------------------------------------------------- urgent calls

# Pages asked and unanswered on one FetchPages call. A VM has one fault a vCPU; this leaves room for 4096 of
# them.
WANTED_PAGES_MAX: Final = 4096

# FetchPages calls of one session: a worker's own, those that a lost link left half-open, and some for
# tools.
URGENT_CALLS_MAX: Final = 8

# Pages in one answer of FetchPages: 64 KiB are on a 2 Gbit/s link for 0.3 ms, the longest one waits for a
# neighbour.
URGENT_BATCH_PAGES_MAX: Final = 16

# ------------------------------------------------------------------------------------ connections and windows

# Calls open at once on one connection (SETTINGS_MAX_CONCURRENT_STREAMS). A client of ours needs two dozen.
STREAMS_MAX: Final = 128

# Connections of one page server; each costs its buffers and at most one batch a stream. A 65th is closed
# unread.
CONNECTIONS_MAX: Final = 64

# Connections that wait in the kernel to be accepted: as many as may be open.
LISTEN_BACKLOG_MAX: Final = 64

# All header fields of one call, as HTTP/2 counts them (32 bytes more for each). The library's own limit is
# 4 GiB.
METADATA_BYTES_MAX: Final = 16_384

# Largest HTTP/2 frame that we send or take. Larger ones gain nothing and let an urgent frame wait longer.
FRAME_BYTES_MAX: Final = 16_384

# Read at once from a socket: fits the L2 cache; more gains nothing.
READ_BYTES_MAX: Final = 131_072

# Window of each stream that a client grants (SETTINGS_INITIAL_WINDOW_SIZE). The HTTP/2 default of 64 KiB
# costs two thirds of bulk; megabytes make the kernel's queue, in which an urgent page waits behind bulk, as
# long.
STREAM_WINDOW_BYTES: Final = 262_144

# Window of the whole connection: some streams may stall without stopping the others.
CONNECTION_WINDOW_BYTES: Final = 1_048_576

# What one connection may write in one turn of its loop. Without it an urgent page waits 2.6 ms or longer
# behind bulk on loopback and 17 ms on a 2 Gbit/s link.
WRITE_BUDGET_BYTES: Final = 65_536

# TCP_NOTSENT_LOWAT: bytes that may lie unsent in the kernel; what lies there can no longer be overtaken.
NOTSENT_LOWAT_BYTES: Final = 32_768

# A connection that has opened no call for this long after it was accepted is closed.
FIRST_REQUEST_MS: Final = 10_000

# Control frames (PING, SETTINGS, RST_STREAM, PRIORITY, empty DATA) that a connection may send at once, and
# regains in a second; beyond that it is a flood and the connection is closed.
FLOOD_FRAMES_MAX: Final = 1000
FLOOD_FRAMES_PER_S: Final = 330

# --------------------------------------------------------------------------------------------------- sessions

# Name of a session: a Job's uid fits, and a DNS label.
SESSION_NAME_BYTES_MAX: Final = 63

# A session's token before base64url: 256 random bits.
TOKEN_BYTES: Final = 32

# Sessions that a page server keeps, those that have ended included: for a retry to find its outcome.
SESSIONS_MAX: Final = 256

# Incarnations of one image: 24 bits of its versions.
INCARNATION_MAX: Final = (1 << 24) - 1

# A device state: QEMU's is below 1 MiB; much more means that RAM is in it.
DEVICE_STATE_BYTES_MAX: Final = 16 << 20

# One piece of it on the control port, with room for the other fields below CONTROL_MESSAGE_BYTES_MAX.
DEVICE_STATE_PIECE_BYTES: Final = 32_768

# Bulk is paced to this share of what the link was seen to bring, so that an urgent page finds the queues
# on the way empty. 80 % gives the shortest faults, and a total a quarter longer.
PACE_PERCENT: Final = 95

# --------------------------------------------------------------------------------------------------- liveness

# A client sends a heartbeat on its FetchPages call this often: it proves the server's page thread, not the
# transport.
HEARTBEAT_INTERVAL_MS: Final = 1000

# Silence on the urgent call after which a client dials anew: three heartbeats that came back from nobody.
LINK_SILENT_MS: Final = 3000

# Silence after which a server ends the call of a session, and a client gives a bulk connection up: its ranges
# have no heartbeat, and a slow disk or link may hold them back for seconds.
HEARTBEAT_TIMEOUT_MS: Final = 10_000

# A connection that is not there after this long of dialing is dialed anew.
DIAL_TIMEOUT_MS: Final = 5000

# Bytes sent and not acknowledged by the peer's kernel for this long end the connection (TCP_USER_TIMEOUT).
TCP_USER_TIMEOUT_MS: Final = 10_000

# A link down for this long is worth telling: the session shows PAUSED with the reason. Faults wait
# meanwhile.
LINK_PAUSE_MS: Final = 10_000

# Back-off between dials of a lost link, doubled each time: a restarted server is found at once, a dead one
# costs little.
REDIAL_MIN_MS: Final = 50
REDIAL_MAX_MS: Final = 2000

# Back-off before a page is asked again that was answered LATER, or whose bytes did not agree with their
# digest.
ASK_AGAIN_MIN_MS: Final = 10
ASK_AGAIN_MAX_MS: Final = 1000

# What a server puts into pageferry-retry-after-ms with BUSY.
BUSY_RETRY_MS: Final = 100

# A resolution that found no memory is tried again this often.
FULL_RETRY_MS: Final = 50

# ------------------------------------------------------------------------------------------------------- bulk

# Pages of one bulk call while faults come: the range follows the last fault, so a long one is soon out of
# place.
BULK_RANGE_PAGES: Final = 16

# Pages of one bulk call while nobody waits: one full batch.
BULK_RANGE_IDLE_PAGES: Final = 64

# Bulk calls open at once while nobody waits: enough to cover a round trip of 2 ms at 1 GB/s.
BULK_RANGES_IN_FLIGHT: Final = 8

# And while faults come, as long as the link's rate is not known: an urgent page waits behind what is under
# way. One range at a time leaves the link free between two of them, which paces bulk by itself (1 Gbit/s:
# median fault 0.1 ms, with eight 1.0 ms).
BULK_RANGES_GENTLE_MAX: Final = 1

# While faults come and a pace is kept: enough that the link need not wait for the next to be asked.
BULK_RANGES_PACED_MAX: Final = 4

# Faults count as "coming" until none has come for this long.
BULK_QUIET_MS: Final = 20

# Messages of bulk between the bulk thread and the pagers, in a pool that is allocated once.
BULK_SLOTS: Final = 16

# ----------------------------------------------------------------------------------------------- the hand-off

# The JSON of a hand-off: 64 regions need 8 KiB.
HANDOFF_BYTES_MAX: Final = 65_536

# From the VMM's connection to its complete hand-off.
HANDOFF_TIMEOUT_MS: Final = 5000

# How long the shim waits, with the VMM's first mmap held back, for the client's word that it pages this VM.
SHIM_ACCEPT_MS: Final = 30_000

# A thread of the VMM that has waited for arming this long is reported: the VMM touched its memory too
# early.
EARLY_FAULT_MS: Final = 1000

# --------------------------------------------------------------------------------- control ports and defaults

# One message on a control port.
CONTROL_MESSAGE_BYTES_MAX: Final = 65_536

# WatchSessions: asked interval 0 means the first, anything below the second is raised to it.
WATCH_INTERVAL_MS: Final = 1000
WATCH_INTERVAL_MIN_MS: Final = 100

# From SIGTERM to the end, calls in work included; below the 30 s that Kubernetes gives.
DRAIN_TIMEOUT_MS: Final = 20_000

# Ports of the page server: pages, orchestrator, metrics. Loopback, because the data port has no TLS yet.
DEFAULT_SERVER_DATA_ADDRESS: Final = "127.0.0.1:7850"
DEFAULT_SERVER_CONTROL_ADDRESS: Final = "127.0.0.1:7851"
DEFAULT_SERVER_METRICS_ADDRESS: Final = "127.0.0.1:7852"

# Ports of the fault client: control, metrics. It has no data port.
DEFAULT_CLIENT_CONTROL_ADDRESS: Final = "127.0.0.1:7861"
DEFAULT_CLIENT_METRICS_ADDRESS: Final = "127.0.0.1:7862"

# Worker threads of the page server's data port. One saturates a 10 Gbit/s link.
SERVER_THREADS_MAX: Final = 64
DEFAULT_SERVER_THREADS: Final = 1

# Spinning before sleep saves about 8 us a fault and takes a core; only who has one to spare turns it on.
DEFAULT_SPIN_US: Final = 0

# A session that no target has opened after this long is given up; KubeVirt's Jobs take a minute to start.
DEFAULT_ATTACH_WITHIN_S: Final = 600

# How long the guest may stand still: precopy goes on until what is left fits.
DEFAULT_MAX_DOWNTIME_MS: Final = 900

# Precopy ends after this many rounds, converged or not.
DEFAULT_ROUNDS_MAX: Final = 30

# KubeVirt's: time for the whole, by the size of the memory, and for a precopy that does not get on.
DEFAULT_COMPLETION_TIMEOUT_PER_GIB_S: Final = 150
DEFAULT_PROGRESS_TIMEOUT_S: Final = 150

# SPDX-License-Identifier: Apache-2.0
"""The limits fit one another, each has its reason, and the C headers that repeat one repeat it rightly."""

import re
from pathlib import Path

import pytest

from pageferry import limits
from pageferry.v1 import pages_pb2

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(limits.__file__).read_text()
NAMES = re.findall(r"^([A-Z]\w*): Final = ", SOURCE, re.MULTILINE)
UNITS = (
    *("BYTES", "BYTES_MAX", "BYTES_CAP", "PAGES", "PAGES_MAX", "MS", "MAX", "PER_S", "IN_FLIGHT", "SLOTS"),
    "PERCENT",
)


def test_there_are_limits_and_no_name_twice() -> None:
    assert len(NAMES) > 40
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_has_a_reason(name: str) -> None:
    """A comment right above it, or above the limit right above it: pairs share one."""
    lines = SOURCE.splitlines()
    index = next(number for number, line in enumerate(lines) if line.startswith(f"{name}: Final"))
    while lines[index - 1] and not lines[index - 1].startswith("#"):
        index -= 1
    assert re.match(r"# [^-]", lines[index - 1]), f"{name} does not say why"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("DEFAULT_")])
def test_limits_are_positive_numbers_and_name_their_unit(name: str) -> None:
    value = getattr(limits, name)
    assert isinstance(value, int) and value > 0
    assert name.endswith(UNITS) or name == "IMMUTABLE_VERSION"


def test_batches_fit() -> None:
    assert limits.BATCH_BYTES_MAX % limits.PAGE_BYTES == 0
    assert limits.BATCH_BYTES_MAX <= limits.BATCH_BYTES_CAP <= 1 << 20
    assert limits.URGENT_BATCH_PAGES_MAX * limits.PAGE_BYTES <= limits.BATCH_BYTES_MAX
    assert limits.BULK_RANGE_PAGES <= limits.BULK_RANGE_IDLE_PAGES
    assert limits.BULK_RANGE_IDLE_PAGES * limits.PAGE_BYTES <= limits.BATCH_BYTES_MAX
    assert limits.BULK_RANGES_IN_FLIGHT < limits.STREAMS_MAX


def test_windows_fit() -> None:
    assert limits.STREAM_WINDOW_BYTES <= limits.CONNECTION_WINDOW_BYTES < 1 << 31
    assert 32 * 1024 <= limits.WRITE_BUDGET_BYTES <= 128 * 1024
    assert limits.NOTSENT_LOWAT_BYTES <= limits.WRITE_BUDGET_BYTES
    assert 16_384 <= limits.FRAME_BYTES_MAX <= limits.WRITE_BUDGET_BYTES


def test_times_fit() -> None:
    assert 3 * limits.HEARTBEAT_INTERVAL_MS <= limits.HEARTBEAT_TIMEOUT_MS <= limits.LINK_PAUSE_MS
    assert limits.REDIAL_MIN_MS < limits.REDIAL_MAX_MS < limits.LINK_PAUSE_MS
    assert limits.ASK_AGAIN_MIN_MS < limits.ASK_AGAIN_MAX_MS
    assert limits.HANDOFF_TIMEOUT_MS < limits.SHIM_ACCEPT_MS
    assert limits.WATCH_INTERVAL_MIN_MS <= limits.WATCH_INTERVAL_MS
    assert limits.DRAIN_TIMEOUT_MS < 30_000


def test_the_longest_request_fits() -> None:
    """As many lone pages as a message may have, at the far end of the largest image."""
    last = limits.IMAGE_PAGES_MAX - 1
    runs = [number for page in range(last - 2 * limits.RUNS_MAX, last, 2) for number in (page, 1)]
    request = pages_pb2.FetchPagesRequest(
        image="i" * limits.IMAGE_NAME_BYTES_MAX, runs=runs, heartbeat=2**64 - 1
    )
    assert len(request.runs) == 2 * limits.RUNS_MAX
    assert request.ByteSize() <= limits.REQUEST_BYTES_MAX


def test_the_longest_batch_fits() -> None:
    """As many runs as a message may have, of the longest numbers there are, and as many bytes."""
    batch = pages_pb2.PageBatch(
        as_of=2**64 - 1,
        runs=[2**64 - 1] * (4 * limits.RUNS_MAX),
        encoding=pages_pb2.ENCODING_LZ4,
        digest=1,
        heartbeat=2**64 - 1,
        phase=pages_pb2.PHASE_LOST,
        cancel_requested=True,
        manifest_digest=bytes(16),
        data=bytes(limits.BATCH_BYTES_CAP),
    )
    assert batch.ByteSize() <= limits.BATCH_MESSAGE_BYTES_MAX


def test_the_pager_agrees_on_regions() -> None:
    """native/pager includes nothing of gen/ (docs/design.md), so it has this number of its own."""
    match = re.search(
        r"^#define REGIONS_MAX (\d+)$", (ROOT / "native/pager/region.h").read_text(), re.MULTILINE
    )
    assert match and int(match[1]) == limits.REGIONS_MAX

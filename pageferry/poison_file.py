# SPDX-License-Identifier: Apache-2.0
"""The poison file: which pages of a saved image are lost, beside it as FILE.poison. One JSON object:

    {"format": "pageferry-poison-1", "pages": 262144, "content_id": "0123456789abcdef",
     "runs": [[1042, 16], [7, 1]], "left_out": [[1042, 16]]}

pages       of the image: a poison file of another size is another image's
content_id  of the image, as 16 hex digits; null: it was not served yet, and whoever serves it fills it in. It
            stays what it was when pages are lost later, for clients compare it
runs        "first, count", in the order in which they were lost, no page twice
left_out    those of them that were lost before the content id was computed: it is that of the others

Pages are lost for ever, so it only grows. It is written beside the old one, synced, and put in its place by a
rename: whoever reads finds one of the two, whole. One that cannot be understood is refused: to go on without
it would turn lost pages into data.
"""

import errno
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pageferry.limits import IMAGE_PAGES_MAX
from pageferry.reasons import PageferryError, Reason
from pageferry.units import PageRun, merge

FORMAT: Final = "pageferry-poison-1"
SUFFIX: Final = ".poison"
WAITING: Final = ".new"
BYTES_MAX: Final = 1 << 30
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
DENIED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class PoisonRecord:
    """What the file says. content_id 0: not known yet."""

    page_count: int
    runs: tuple[PageRun, ...] = ()
    content_id: int = 0
    left_out: tuple[PageRun, ...] = ()

    @property
    def pages(self) -> int:
        return sum(run.page_count for run in self.runs)


def beside(image: Path) -> Path:
    """Where it lies if nobody says otherwise."""
    return image.with_name(image.name + SUFFIX)


def load(path: Path, page_count: int | None = None) -> PoisonRecord | None:
    """None: there is none. `page_count`: of the image. PageferryError: it cannot be understood, or is of
    another image."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ValueError("it is too long")
        record = _parse(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(path, "read", error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(path, str(error)) from error
    if page_count not in (None, record.page_count):
        raise unreadable(path, f"it is of {record.page_count} pages, and the image has {page_count}")
    return record


def store(path: Path, record: PoisonRecord) -> None:
    """On disk when this returns. PageferryError: the file that was there still is, or this one."""
    text = json.dumps({
        "format": FORMAT,
        "pages": record.page_count,
        "content_id": f"{record.content_id:016x}" if record.content_id else None,
        "runs": _pairs(record.runs),
        "left_out": _pairs(record.left_out),
    })  # fmt: skip
    waiting = path.with_name(path.name + WAITING)
    try:
        with waiting.open("w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        waiting.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _failed(path, "written", error) from error


def _pairs(runs: Sequence[PageRun]) -> list[list[int]]:
    return [[run.first_page, run.page_count] for run in runs]


def _parse(told: Any) -> PoisonRecord:
    """KeyError, TypeError or ValueError: it is no poison file."""
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError(f"it is not of the format {FORMAT}")
    page_count = told["pages"]
    if type(page_count) is not int or not 0 < page_count <= IMAGE_PAGES_MAX:
        raise ValueError(f"an image of {page_count!r:.40} pages cannot be")
    content_id = 0 if told["content_id"] is None else int(told["content_id"], 16)
    if not 0 <= content_id < 1 << 64:
        raise ValueError("its content id has more than 64 bits")
    runs, left_out = _runs(told["runs"], page_count), _runs(told["left_out"], page_count)
    if sum(run.page_count for run in merge((*runs, *left_out))) != sum(run.page_count for run in runs):
        raise ValueError("left_out has pages that are not in runs")
    return PoisonRecord(page_count, runs, content_id, left_out)


def _runs(pairs: Any, page_count: int) -> tuple[PageRun, ...]:
    if not isinstance(pairs, list):
        raise TypeError("runs are no list")
    runs = tuple(_run(pair) for pair in pairs)
    merged = merge(runs)
    if merged and merged[-1].end_page > page_count:
        raise ValueError(f"page {merged[-1].end_page - 1} is past the end of the image")
    if _count(merged) != _count(runs):
        raise ValueError("a page is there twice")
    return runs


def _run(pair: Any) -> PageRun:
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(number) is int for number in pair):
        raise TypeError(f"{pair!r:.60} is no run of pages")
    return PageRun(*pair)


def _count(runs: Iterable[PageRun]) -> int:
    return sum(run.page_count for run in runs)


def unreadable(path: Path, why: str) -> PageferryError:
    return PageferryError(
        Reason.MISMATCH,
        f"the poison file {path} cannot be understood: {why}",
        "find out which pages of the image are lost; then mend it, or take it away if none is",
    )


def _failed(path: Path, what: str, error: OSError) -> PageferryError:
    message = f"the poison file {path} cannot be {what}: {error.strerror or error}"
    if error.errno in FULL:
        return PageferryError(Reason.NO_MEMORY, message, f"make room in {path.parent}")
    if error.errno in DENIED:
        return PageferryError(
            Reason.NOT_ALLOWED, message, "let this user write there, or name another file with --poison"
        )
    return PageferryError(Reason.BAD_REQUEST, message, "name another file with --poison")

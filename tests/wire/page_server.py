# SPDX-License-Identifier: Apache-2.0
"""A page server in C to speak to (serve_file.c, live_vms.c), images to serve, and what their pages must be.

The expectations are computed here, from the contract's words and PyPI's xxhash, without any code of ours.
PAGEFERRY_SERVE_FILE names another build of the program, one under a sanitizer for instance.
"""

import os
import queue
import re
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import xxhash

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub

PAGE_BYTES = 4096
IMMUTABLE = (1 << 32) | 1
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@cache
def program() -> Path:
    """Compiles serve_file.c and what it needs against the C library, if something has changed."""
    if given := os.environ.get("PAGEFERRY_SERVE_FILE"):
        return Path(given)
    subprocess.run(["make", "-s", "-C", "native", "lib"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    tracked = ROOT / "tests/native/tracked"
    sources = [HERE / "serve_file.c", HERE / "live_vms.c", tracked.with_suffix(".c")]
    parts = [*sources, ROOT / "native/build/libpageferry.a"]
    read = [*parts, HERE / "live_vms.h", tracked.with_suffix(".h"), ROOT / "native/pageferry.h"]
    target = ROOT / "build/wire/serve_file"
    if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in read):
        target.parent.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = [
            "cc",
            "-std=gnu17",
            "-O2",
            "-g",
            "-D_GNU_SOURCE",
            "-Inative",
            "-o",
            target,
        ]
        command += [*parts, "-lnghttp2", "-lxxhash", "-lcrypto", "-lpthread", "-lm"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target


# ----------------------------------------------------------------------------------------------------- images


def page_bytes(page: int, seed: int = 0) -> bytes:
    """Bytes that no other page has."""
    return struct.pack("<QQ", page + 1, seed) * (PAGE_BYTES // 16)


@dataclass(frozen=True)
class Image:
    """A file and what must come out of it: `pages` has those that are not all zeros."""

    path: Path
    page_count: int
    pages: Mapping[int, bytes]

    @property
    def content_id(self) -> int:
        hashed = xxhash.xxh3_64()
        for page in sorted(self.pages):
            hashed.update(struct.pack("<Q", page))
            hashed.update(self.pages[page])
        hashed.update(struct.pack("<Q", self.page_count))
        return hashed.intdigest() or 1

    def expected(self, page: int) -> bytes:
        return self.pages.get(page, bytes(PAGE_BYTES))


def make_image(path: Path, page_count: int, data: Iterable[int], zeros: Iterable[int] = ()) -> Image:
    """Pages of `data` hold something, those of `zeros` are written as zeros, the others are holes."""
    pages = {page: page_bytes(page) for page in data}
    with path.open("wb") as file:
        file.truncate(page_count * PAGE_BYTES)
        for page in sorted({*pages, *zeros}):
            file.seek(page * PAGE_BYTES)
            file.write(pages.get(page, bytes(PAGE_BYTES)))
    return Image(path, page_count, pages)


# ---------------------------------------------------------------------------------------------------- batches


def trailers_of(error: grpc.RpcError) -> dict[str, str]:
    """Of a failed call; their type in types-grpcio is one that cannot be taken apart."""
    trailers: Iterable[Any] = error.trailing_metadata() or ()
    return {key: str(value) for key, value in trailers}


def fours(batch: pb.PageBatch) -> list[tuple[int, int, int, int]]:
    runs = list(batch.runs)
    assert len(runs) % 4 == 0
    return [(runs[at], runs[at + 1], runs[at + 2], runs[at + 3]) for at in range(0, len(runs), 4)]


def checked(batch: pb.PageBatch, image: Image) -> Iterator[tuple[int, int]]:
    """Every page of the batch with its kind, after all checks of a client (docs/protocol.md, section 4)."""
    assert batch.as_of == IMMUTABLE
    runs, data, at = fours(batch), batch.data, 0
    named = [page for first, count, _, _ in runs for page in range(first, first + count)]
    assert len(named) == len(set(named)), "runs overlap"
    assert len(runs) <= 4096
    pages = sum(count for _, count, kind, _ in runs if kind == pb.RUN_KIND_DATA)
    assert len(data) == pages * PAGE_BYTES
    assert batch.encoding == (pb.ENCODING_IDENTITY if pages else pb.ENCODING_UNSPECIFIED)
    words = struct.pack(f"<{len(batch.runs)}Q", *batch.runs)
    wanted = xxhash.xxh3_64_intdigest(words + data, seed=image.content_id) if runs else 0
    assert batch.digest == wanted
    for first, count, kind, version in runs:
        assert version == IMMUTABLE
        for page in range(first, first + count):
            assert 0 <= page < image.page_count
            if kind == pb.RUN_KIND_DATA:
                assert data[at : at + PAGE_BYTES] == image.expected(page), f"page {page} has other bytes"
                at += PAGE_BYTES
            elif kind == pb.RUN_KIND_ZERO:
                assert page not in image.pages, f"page {page} is no zeros"
            yield page, kind


# ------------------------------------------------------------------------------------- the client, the server


class Urgent:
    """A FetchPages call that stays open: requests go in one by one."""

    def __init__(self, stub: PageServiceStub, name: str = "vm") -> None:
        self._requests: queue.SimpleQueue[pb.FetchPagesRequest | None] = queue.SimpleQueue()
        self._requests.put(pb.FetchPagesRequest(image=name))
        self.batches: Iterator[pb.PageBatch] = stub.FetchPages(iter(self._requests.get, None))

    def ask(self, *runs: int, heartbeat: int = 0) -> None:
        self._requests.put(pb.FetchPagesRequest(runs=runs, heartbeat=heartbeat))

    def half_close(self) -> None:
        self._requests.put(None)


class PageServer:
    """The program, running; orders go to its standard input."""

    def __init__(
        self,
        images: Mapping[str, Path],
        *,
        threads: int = 1,
        socket: Path | None = None,
        live: Mapping[str, int] | None = None,
    ) -> None:
        options = ["-t", str(threads), *(["-u", str(socket)] if socket else [])]
        options += [word for name, pages in (live or {}).items() for word in ("-l", f"{name}={pages}")]
        named = [f"{name}={path}" for name, path in images.items()]
        self.process = subprocess.Popen(
            [program(), *options, *named], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ready = re.fullmatch(r"ready (\d+)\n", self._line())
        assert ready, "the server did not start"
        self.address = f"127.0.0.1:{ready[1]}"
        self.pid = self.process.pid

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def order(self, *words: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._line().strip()

    def counters(self) -> dict[str, int]:
        pairs = (pair.partition("=") for pair in self.order("counters").split())
        return {name: int(value) for name, _, value in pairs}

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    def fds(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def close(self) -> int:
        """Its exit status: not 0 if a sanitizer found something."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self.close()
        assert kind is not None or status == 0

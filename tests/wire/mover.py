# SPDX-License-Identifier: Apache-2.0
"""A target of a move, by somebody else's gRPC and without any code of ours: docs/protocol.md in Python.

It keeps what it was sent by the rules of pages.proto: every run raises the floor of its pages; bytes and
zeros are taken if they are not older than the floor, and over a held page only if newer.
"""

import base64
import hashlib
import queue
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import grpc
import xxhash

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.wire.page_server import PAGE_BYTES, PageServer, fours, trailers_of

TOKEN = bytes(range(32))
PAGES, ROUNDS = 1, 2
ALL = PAGES | ROUNDS
Metadata = tuple[tuple[str, str], ...]


def bearer(token: bytes) -> str:
    return "Bearer " + base64.urlsafe_b64encode(token).decode().rstrip("=")


@dataclass(frozen=True)
class Who:
    """Whom a call says that it comes from; None: that header is left out."""

    token: str | None = bearer(TOKEN)
    session: str | None = "move"
    target: str | None = "00000000c0ffee00"
    epoch: str | None = "1"

    @property
    def metadata(self) -> Metadata:
        headers = {
            "authorization": self.token,
            "pageferry-session": self.session,
            "pageferry-target": self.target,
            "pageferry-epoch": self.epoch,
        }
        return tuple((name, value) for name, value in headers.items() if value is not None)

    def but(self, **changed: str | None) -> "Who":
        return replace(self, **changed)


ME = Who()


def set_session(
    server: PageServer,
    rights: int,
    *,
    session: str = "move",
    image: str = "live",
    phase: int = pb.PHASE_PRECOPY,
    cancel: bool = False,
    digest: str = "-",
    token: bytes = TOKEN,
) -> None:
    """What the control plane tells the server's gate."""
    hashed = hashlib.sha256(token).hexdigest()
    answer = server.order("session", session, image, hashed, rights, phase, int(cancel), digest)
    assert answer.split() == ["0"], answer


def freeze(server: PageServer, image: str = "live") -> tuple[int, int, str]:
    """as_of, pages that the final round has named, the manifest's digest; the process stands still."""
    status, as_of, dirty, digest = server.order("freeze", image).split()
    assert status == "0"
    return int(as_of), int(dirty), digest


class Attached:
    """A FetchPages call of a session that stays open; its first message has come, or it was refused."""

    def __init__(self, stub: PageServiceStub, who: Who = ME, image: str = "live") -> None:
        self._requests: queue.SimpleQueue[pb.FetchPagesRequest | None] = queue.SimpleQueue()
        self._requests.put(pb.FetchPagesRequest(image=image, encodings=2))
        self.call = stub.FetchPages(iter(self._requests.get, None), metadata=who.metadata)
        self.first: pb.PageBatch = next(self.call)

    def next(self) -> pb.PageBatch:
        batch: pb.PageBatch = next(self.call)
        return batch

    def beat(self, number: int) -> pb.PageBatch:
        self._requests.put(pb.FetchPagesRequest(heartbeat=number))
        return self.next()

    def ask(self, *runs: int) -> None:
        self._requests.put(pb.FetchPagesRequest(runs=runs))

    def half_close(self) -> None:
        self._requests.put(None)

    def reason(self) -> str | None:
        """Why it has ended; None: well."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return trailers_of(error).get("pageferry-reason")
        return None


def get(stub: PageServiceStub, who: Who = ME, image: str = "live", page: int = 1) -> pb.PageBatch:
    batch: pb.PageBatch = stub.GetPage(pb.GetPageRequest(image=image, page=page), metadata=who.metadata)
    return batch


def describe(stub: PageServiceStub, who: Who = ME, image: str = "live") -> pb.DescribeImageResponse:
    described: pb.DescribeImageResponse = stub.DescribeImage(
        pb.DescribeImageRequest(image=image), metadata=who.metadata
    )
    return described


@dataclass
class Mover:
    """What a target holds of the image."""

    stub: PageServiceStub
    content_id: int
    page_count: int
    who: Who = Who()
    image: str = "live"
    since: int = 0
    floors: dict[int, int] = field(default_factory=dict)
    held: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)  # and the version that was named last

    def _checked(self, batch: pb.PageBatch) -> Iterator[tuple[int, int, int, bytes]]:
        """Page, kind, version and bytes of each page, after all checks of a client."""
        words = struct.pack(f"<{len(batch.runs)}Q", *batch.runs)
        wanted = xxhash.xxh3_64_intdigest(words + batch.data, seed=self.content_id) if batch.runs else 0
        assert batch.digest == wanted
        at = 0
        for first, count, kind, version in fours(batch):
            assert count > 0 and first + count <= self.page_count and version > 0
            for page in range(first, first + count):
                data = batch.data[at : at + PAGE_BYTES] if kind == pb.RUN_KIND_DATA else b""
                at += len(data)
                yield page, kind, version, data
        assert at == len(batch.data)

    def _take(self, page: int, kind: int, version: int, data: bytes) -> None:
        self.floors[page] = max(version, self.floors.get(page, 0))
        held = self.held.get(page, (0, b""))[0]
        if held < self.floors[page]:
            self.held.pop(page, None)
        if kind == pb.RUN_KIND_POISON or page in self.lost:  # for ever: bytes that come later are dropped
            self.lost[page] = self.floors[page]
            self.held.pop(page, None)
            return
        if kind in (pb.RUN_KIND_DATA, pb.RUN_KIND_ZERO) and version >= self.floors[page] and version > held:
            self.held[page] = (version, data if kind == pb.RUN_KIND_DATA else bytes(PAGE_BYTES))

    def round(self, *, open_new: bool = True) -> set[int]:
        """Reads the map, of a new round or as it is; the pages that it names."""
        request = pb.StreamPagesRequest(
            image=self.image, since_version=self.since, versions_only=True, open_round=open_new
        )
        named: list[int] = []
        settled = set()
        for batch in self.stub.StreamPages(request, metadata=self.who.metadata, timeout=60):
            settled.add(batch.as_of)
            assert not batch.data
            for page, kind, version, _ in self._checked(batch):
                assert kind in (pb.RUN_KIND_VERSION, pb.RUN_KIND_ZERO, pb.RUN_KIND_POISON)
                assert version > self.since
                named.append(page)
                self._take(page, kind, version, b"")
        assert len(settled) == 1 and named == sorted(set(named))
        self.since = settled.pop()
        return set(named)

    def missing(self) -> list[int]:
        return [page for page in range(self.page_count) if page not in self.held and page not in self.lost]

    def fetch(self) -> None:
        """All that is missing, in bulk."""
        runs = [number for page in self.missing() for number in (page, 1)]
        if not runs:
            return
        request = pb.StreamPagesRequest(image=self.image, runs=runs, encodings=2)
        for batch in self.stub.StreamPages(request, metadata=self.who.metadata, timeout=60):
            for page, kind, version, data in self._checked(batch):
                self._take(page, kind, version, data)

    def manifest(self) -> str:
        """Of what is held, as 16 bytes in hex."""
        total = 0
        versions = {page: version for page, (version, _) in self.held.items()} | self.lost
        for page, version in versions.items():
            total += xxhash.xxh3_128_intdigest(struct.pack("<QQ", page, version))
        return (total % (1 << 128)).to_bytes(16, "little").hex()

    def page(self, page: int) -> bytes:
        return self.held[page][1]


def mover_of(stub: PageServiceStub, who: Who = ME) -> Mover:
    described = describe(stub, who)
    return Mover(stub, described.content_id, described.page_count, who)

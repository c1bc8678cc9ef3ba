# SPDX-License-Identifier: Apache-2.0
"""PageService in plain grpcio, written from docs/protocol.md alone: somebody else's page server.

    with GrpcPageServer({"vm": image}) as server:
        client(folder, server.address)

Nothing of pageferry is used but the generated messages. Calls are counted by their method.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import grpc
import xxhash

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1 import pages_pb2_grpc

PAGE_BYTES: Final = 4096
VERSION: Final = (1 << 32) | 1  # of every page of an image that never changes
BATCH_PAGES: Final = 32  # a choice of this server's, unlike ours
ZEROS: Final = bytes(PAGE_BYTES)

Context = grpc.ServicerContext


def pairs(runs: Iterable[int]) -> Iterator[tuple[int, int]]:
    numbers = iter(runs)
    return zip(numbers, numbers, strict=True)


class Image:
    """A file, read whole."""

    def __init__(self, path: Path, region_pages: tuple[int, ...]) -> None:
        content = path.read_bytes()
        self.pages = [content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES)]
        self.region_pages = region_pages or (len(self.pages),)
        hashed = xxhash.xxh3_64()
        for number, page in enumerate(self.pages):
            if page != ZEROS:
                hashed.update(struct.pack("<Q", number) + page)
        hashed.update(struct.pack("<Q", len(self.pages)))
        self.content_id = hashed.intdigest() or 1

    def batch(self, numbers: Iterable[int]) -> pb.PageBatch:
        """One batch with these pages."""
        fours: list[int] = []
        data = []
        for number in numbers:
            page = self.pages[number]
            kind = pb.RUN_KIND_ZERO if page == ZEROS else pb.RUN_KIND_DATA
            if fours and fours[-2] == kind and fours[-4] + fours[-3] == number:
                fours[-3] += 1
            else:
                fours += [number, 1, kind, VERSION]
            if kind == pb.RUN_KIND_DATA:
                data.append(page)
        joined = b"".join(data)
        words = struct.pack(f"<{len(fours)}Q", *fours)
        return pb.PageBatch(
            as_of=VERSION,
            runs=fours,
            encoding=pb.ENCODING_IDENTITY if data else pb.ENCODING_UNSPECIFIED,
            digest=xxhash.xxh3_64_intdigest(words + joined, seed=self.content_id),
            data=joined,
        )

    def batches(self, runs: Iterable[int]) -> Iterator[pb.PageBatch]:
        for first, count in pairs(runs):
            for at in range(first, first + count, BATCH_PAGES):
                yield self.batch(range(at, min(at + BATCH_PAGES, first + count)))


class PageService(pages_pb2_grpc.PageServiceServicer):
    def __init__(self, images: Mapping[str, Image], calls: Counter[str]) -> None:
        self._images = images
        self._calls = calls

    def _named(self, name: str, method: str, context: Context) -> Image:
        self._calls[method] += 1
        if name not in self._images:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no image {name!r} here")
        return self._images[name]

    def DescribeImage(self, request: pb.DescribeImageRequest, context: Context) -> pb.DescribeImageResponse:
        image = self._named(request.image, "DescribeImage", context)
        return pb.DescribeImageResponse(
            content_id=image.content_id,
            page_count=len(image.pages),
            page_bytes=PAGE_BYTES,
            unit_pages=1,
            region_pages=image.region_pages,
            as_of=VERSION,
            batch_bytes_max=BATCH_PAGES * PAGE_BYTES,
            runs_max=4096,
            wanted_pages_max=4096,
            urgent_calls_max=4,
            encodings=1 << pb.ENCODING_IDENTITY,
        )

    def GetPage(self, request: pb.GetPageRequest, context: Context) -> pb.PageBatch:
        return self._named(request.image, "GetPage", context).batch([request.page])

    def FetchPages(
        self, request_iterator: Iterator[pb.FetchPagesRequest], context: Context
    ) -> Iterator[pb.PageBatch]:
        yield pb.PageBatch(as_of=VERSION)
        image = None
        for request in request_iterator:
            if image is None:
                image = self._named(request.image, "FetchPages", context)
            if request.heartbeat:
                yield pb.PageBatch(as_of=VERSION, heartbeat=request.heartbeat)
            yield from image.batches(request.runs)

    def StreamPages(self, request: pb.StreamPagesRequest, context: Context) -> Iterator[pb.PageBatch]:
        image = self._named(request.image, "StreamPages", context)
        if request.since_version >= VERSION:
            yield pb.PageBatch(as_of=VERSION)
            return
        yield from image.batches(request.runs or [0, len(image.pages)])


class GrpcPageServer:
    """Listening on a free port of loopback from its construction on."""

    def __init__(self, images: Mapping[str, Path], region_pages: tuple[int, ...] = ()) -> None:
        self.calls: Counter[str] = Counter()
        read = {name: Image(path, region_pages) for name, path in images.items()}
        self._server = grpc.server(ThreadPoolExecutor(8))
        service: Any = PageService(read, self.calls)
        pages_pb2_grpc.add_PageServiceServicer_to_server(service, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.address = f"127.0.0.1:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

# SPDX-License-Identifier: Apache-2.0
"""A page server as one would write it with grpcio alone: grpc.aio on uvloop, the fastest of its kinds.

The benchmark restores from it with our fault client, to say what an interpreter on a page's way costs.
It serves one immutable image, every page as DATA. Prints the port it listens on, and runs until it is told to
stop.

    python -m bench.peer.server IMAGE --name NAME
"""

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import grpc
import uvloop

from bench.peer.image import Image
from pageferry.limits import BATCH_BYTES_MAX, IMMUTABLE_VERSION, PAGE_BYTES, RUNS_MAX, WANTED_PAGES_MAX
from pageferry.v1 import pages_pb2, pages_pb2_grpc

BATCH_PAGES_MAX = BATCH_BYTES_MAX // PAGE_BYTES


async def refuse(context: Any, code: grpc.StatusCode, reason: str, message: str) -> NoReturn:
    await context.abort(code, message, (("pageferry-reason", reason),))
    raise AssertionError("abort returned")


class PageService(pages_pb2_grpc.PageServiceServicer):
    def __init__(self, name: str, image: Image) -> None:
        self._name = name
        self._image = image

    async def _check(self, name: str, runs: list[int], context: Any) -> None:
        if name != self._name:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "NO_SUCH_IMAGE", f"there is no image {name!r}")
        if len(runs) % 2 or 0 in runs[1::2]:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "BAD_REQUEST", "runs are not pairs")
        if any(first + count > self._image.page_count for first, count in _pairs(runs)):
            await refuse(context, grpc.StatusCode.OUT_OF_RANGE, "OUT_OF_IMAGE", "a run ends past the image")

    def _batches(self, runs: list[int]) -> Iterator[pages_pb2.PageBatch]:
        for first, count in _pairs(runs):
            for start in range(first, first + count, BATCH_PAGES_MAX):
                yield self._image.batch(start, min(BATCH_PAGES_MAX, first + count - start))

    async def DescribeImage(
        self, request: pages_pb2.DescribeImageRequest, context: Any
    ) -> pages_pb2.DescribeImageResponse:
        await self._check(request.image, [], context)
        return pages_pb2.DescribeImageResponse(
            content_id=self._image.content_id,
            page_count=self._image.page_count,
            page_bytes=PAGE_BYTES,
            unit_pages=1,
            region_pages=[self._image.page_count],
            as_of=IMMUTABLE_VERSION,
            batch_bytes_max=BATCH_BYTES_MAX,
            runs_max=RUNS_MAX,
            wanted_pages_max=WANTED_PAGES_MAX,
            urgent_calls_max=1,
            encodings=1 << pages_pb2.ENCODING_IDENTITY,
        )

    async def GetPage(self, request: pages_pb2.GetPageRequest, context: Any) -> pages_pb2.PageBatch:
        await self._check(request.image, [request.page, 1], context)
        return self._image.batch(request.page, 1)

    async def FetchPages(
        self, request_iterator: AsyncIterator[pages_pb2.FetchPagesRequest], context: Any
    ) -> AsyncIterator[pages_pb2.PageBatch]:
        first = True
        async for request in request_iterator:
            runs = list(request.runs)
            await self._check(request.image if first else self._name, runs, context)
            if first:
                yield pages_pb2.PageBatch(as_of=IMMUTABLE_VERSION)
                first = False
            if request.heartbeat:
                yield pages_pb2.PageBatch(as_of=IMMUTABLE_VERSION, heartbeat=request.heartbeat)
            for batch in self._batches(runs):
                yield batch

    async def StreamPages(
        self, request: pages_pb2.StreamPagesRequest, context: Any
    ) -> AsyncIterator[pages_pb2.PageBatch]:
        runs = list(request.runs) or [0, self._image.page_count]
        await self._check(request.image, runs, context)
        if request.versions_only or request.open_round:
            await refuse(context, grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED", "this peer serves bytes only")
        if request.since_version >= IMMUTABLE_VERSION:
            yield pages_pb2.PageBatch(as_of=IMMUTABLE_VERSION)
            return
        for batch in self._batches(runs):
            yield batch


def _pairs(runs: list[int]) -> Iterator[tuple[int, int]]:
    return zip(runs[::2], runs[1::2], strict=True)


async def serve(path: Path, name: str) -> None:
    server = grpc.aio.server()
    pages_pb2_grpc.add_PageServiceServicer_to_server(PageService(name, Image(path)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(port, flush=True)
    await stop.wait()
    await server.stop(grace=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.peer.server", description="a plain grpcio page server")
    parser.add_argument("image", type=Path)
    parser.add_argument("--name", default="bench")
    options = parser.parse_args()
    uvloop.run(serve(options.image, options.name))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from pageferry.v1 import pages_pb2

class PageServiceStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    DescribeImage: grpc.UnaryUnaryMultiCallable[pages_pb2.DescribeImageRequest, pages_pb2.DescribeImageResponse]
    GetPage: grpc.UnaryUnaryMultiCallable[pages_pb2.GetPageRequest, pages_pb2.PageBatch]
    FetchPages: grpc.StreamStreamMultiCallable[pages_pb2.FetchPagesRequest, pages_pb2.PageBatch]
    StreamPages: grpc.UnaryStreamMultiCallable[pages_pb2.StreamPagesRequest, pages_pb2.PageBatch]

# For type checkers alone: what PageServiceStub is over a channel of grpc.aio; cast to it.
class PageServiceAsyncStub:
    DescribeImage: grpc.aio.UnaryUnaryMultiCallable[pages_pb2.DescribeImageRequest, pages_pb2.DescribeImageResponse]
    GetPage: grpc.aio.UnaryUnaryMultiCallable[pages_pb2.GetPageRequest, pages_pb2.PageBatch]
    FetchPages: grpc.aio.StreamStreamMultiCallable[pages_pb2.FetchPagesRequest, pages_pb2.PageBatch]
    StreamPages: grpc.aio.UnaryStreamMultiCallable[pages_pb2.StreamPagesRequest, pages_pb2.PageBatch]

# Each call may be plain or async.
class PageServiceServicer:
    def DescribeImage(
        self, request: pages_pb2.DescribeImageRequest, context: Any
    ) -> pages_pb2.DescribeImageResponse | Awaitable[pages_pb2.DescribeImageResponse]: ...
    def GetPage(
        self, request: pages_pb2.GetPageRequest, context: Any
    ) -> pages_pb2.PageBatch | Awaitable[pages_pb2.PageBatch]: ...
    def FetchPages(
        self, request_iterator: Any, context: Any
    ) -> Iterator[pages_pb2.PageBatch] | AsyncIterator[pages_pb2.PageBatch] | Awaitable[None]: ...
    def StreamPages(
        self, request: pages_pb2.StreamPagesRequest, context: Any
    ) -> Iterator[pages_pb2.PageBatch] | AsyncIterator[pages_pb2.PageBatch] | Awaitable[None]: ...

def add_PageServiceServicer_to_server(
    servicer: PageServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...

# SPDX-License-Identifier: Apache-2.0
"""One server for the tests that leave it as it was, with a sparse image, and a channel to it."""

from collections.abc import Iterator

import grpc
import pytest

from pageferry.v1 import pages_pb2_grpc
from tests.wire.page_server import Image, PageServer, make_image


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Long extents, lone pages between holes, zeros that were written; the last page holds data."""
    data = [*range(300), *range(400, 500, 2), 640, 700, *range(1000, 1037)]
    return make_image(tmp_path_factory.mktemp("images") / "sparse", 1037, data, range(500, 530))


@pytest.fixture(scope="session")
def server(image: Image) -> Iterator[PageServer]:
    with PageServer({"vm": image.path}) as running:
        yield running


@pytest.fixture
def channel(server: PageServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as open_channel:
        yield open_channel


@pytest.fixture
def stub(channel: grpc.Channel) -> pages_pb2_grpc.PageServiceStub:
    return pages_pb2_grpc.PageServiceStub(channel)

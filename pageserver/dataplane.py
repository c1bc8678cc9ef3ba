# SPDX-License-Identifier: Apache-2.0
"""The data port: C threads that serve pages. The only file here that sees cffi."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from pageferry._native import ffi, lib
from pageferry.service import native
from pageserver.images import ImageFile


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one look at all bytes of an image gave."""

    content_id: int
    page_count: int
    data_pages: int  # not all zero


class Progress:
    """How far a look at an image has come; read on one thread while another one waits for the look."""

    def __init__(self) -> None:
        self.shared: Any = ffi.new("struct pageferry_progress *")

    @property
    def done_bytes(self) -> int:
        return int(self.shared.done_bytes)

    @property
    def total_bytes(self) -> int:
        return int(self.shared.total_bytes)

    def cancel(self) -> None:
        self.shared.cancel = 1


def inspect(image: ImageFile, progress: Progress) -> ImageFacts:
    """Reads the file's data extents once. Blocks, with the interpreter's lock released.

    PageferryError: it cannot be read, or CANCELLED.
    """
    facts = ffi.new("struct pageferry_image_facts *")
    error = ffi.new("char[]", lib.PAGEFERRY_TEXT_BYTES)
    native.check(lib.pageferry_image_inspect(image.fd, progress.shared, facts, error, len(error)), error)
    return ImageFacts(facts.content_id, facts.page_count, facts.data_pages)


class DataPlane:
    """Serves on the sockets it is given, from now until close()."""

    def __init__(self, sockets: Sequence[socket.socket], threads: int) -> None:
        options = ffi.new("struct pageferry_server_options *")
        fds = ffi.new("int[]", [one.fileno() for one in sockets])  # C duplicates them
        options.listen_fds = fds
        options.listen_fd_count = len(sockets)
        options.threads = threads
        out = ffi.new("struct pageferry_server **")
        native.check(lib.pageferry_server_open(options, out), options.error)
        self._server = out[0]

    def add(self, image: ImageFile, facts: ImageFacts) -> None:
        """Serves the image under its name from now on; the file stays the caller's."""
        error = ffi.new("char[]", lib.PAGEFERRY_TEXT_BYTES)
        c_facts = ffi.new(
            "struct pageferry_image_facts *", (facts.content_id, facts.page_count, facts.data_pages)
        )
        regions = ffi.new("uint64_t[]", list(image.region_pages))
        native.check(
            lib.pageferry_server_add_file(
                self._server,
                image.name.encode(),
                image.fd,
                c_facts,
                regions,
                len(image.region_pages),
                error,
                len(error),
            ),
            error,
        )

    def health(self, serving: bool) -> None:
        lib.pageferry_server_health(self._server, serving)

    def drain(self) -> None:
        """No new calls; open ones end with GOING_AWAY once what they owe is answered."""
        lib.pageferry_server_drain(self._server)

    def open_calls(self) -> int:
        return int(lib.pageferry_server_open_calls(self._server))

    def counters(self) -> dict[str, int]:
        return native.counters(lambda values, size: lib.pageferry_server_counters(self._server, values, size))

    def histogram(self, name: str) -> native.Histogram:
        return native.histogram(
            lambda index, values, size: lib.pageferry_server_histogram(self._server, index, values, size),
            name,
        )

    def close(self) -> None:
        if self._server != ffi.NULL:
            lib.pageferry_server_close(self._server)
            self._server = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

# SPDX-License-Identifier: Apache-2.0
"""An image file as the peer sees it, and the two digests of the contract, through libxxhash and ctypes."""

import ctypes
import ctypes.util
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

from pageferry.limits import IMMUTABLE_VERSION, PAGE_BYTES
from pageferry.v1 import pages_pb2


def _library() -> ctypes.CDLL:
    name = ctypes.util.find_library("xxhash")
    if name is None:
        raise SystemExit("libxxhash is missing. Install it: apt-get install libxxhash0")
    library = ctypes.CDLL(name)
    state, length = ctypes.c_void_p, ctypes.c_size_t
    library.XXH3_createState.restype = state
    library.XXH3_freeState.argtypes = [state]
    library.XXH3_64bits_reset_withSeed.argtypes = [state, ctypes.c_uint64]
    library.XXH3_64bits_update.argtypes = [state, ctypes.c_char_p, length]
    library.XXH3_64bits_digest.argtypes = [state]
    library.XXH3_64bits_digest.restype = ctypes.c_uint64
    return library


class Hash:
    """XXH3-64 over pieces; one object serves any number of digests, one after the other."""

    def __init__(self) -> None:
        self._library = _library()
        self._state = ctypes.c_void_p(self._library.XXH3_createState())
        if not self._state:
            raise MemoryError("XXH3_createState")

    def digest(self, seed: int, pieces: Sequence[bytes]) -> int:
        self._library.XXH3_64bits_reset_withSeed(self._state, seed)
        for piece in pieces:
            self._library.XXH3_64bits_update(self._state, piece, len(piece))
        return int(self._library.XXH3_64bits_digest(self._state))


class Image:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._bytes) % PAGE_BYTES:
            raise SystemExit(f"{path} is not a whole number of pages")
        self.page_count = len(self._bytes) // PAGE_BYTES
        self._hash = Hash()
        self.content_id = self._content_id()

    def _content_id(self) -> int:
        zeros = bytes(PAGE_BYTES)
        pieces: list[bytes] = []
        for page in range(self.page_count):
            data = self._bytes[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
            if data != zeros:
                pieces += (struct.pack("<Q", page), data)
        pieces.append(struct.pack("<Q", self.page_count))
        return self._hash.digest(0, pieces) or 1

    def batch(self, first: int, count: int) -> pages_pb2.PageBatch:
        data = self._bytes[first * PAGE_BYTES : (first + count) * PAGE_BYTES]
        run = (first, count, pages_pb2.RUN_KIND_DATA, IMMUTABLE_VERSION)
        return pages_pb2.PageBatch(
            as_of=IMMUTABLE_VERSION,
            runs=run,
            encoding=pages_pb2.ENCODING_IDENTITY,
            digest=self._hash.digest(self.content_id, (struct.pack("<4Q", *run), data)),
            data=data,
        )

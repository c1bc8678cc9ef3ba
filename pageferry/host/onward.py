# SPDX-License-Identifier: Apache-2.0
"""What a page server and who hands a VM over in its place say to each other. A fault client: docs/chain.md.

    fault client                                   page server
      |  JSON, uffd, RAM file, page table, pidfd      |     as handoff.py receives it
      |---------------------------------------------->|
      |                                    accepted   |     what it writes is seen from now on
      |<----------------------------------------------|
      |  complete                                     |     every page is here, none of them is poisoned
      |---------------------------------------------->|
      |                                    let go     |     no move is under way: the memory is registered for
      |<----------------------------------------------|     write protection alone, and faults come no more

Words, one a line. The end of the connection is the end of who was there: nothing else is told by it. Who has
attached to a VM that was running (`pageserver attach`) has no page table to send, hears "accepted", and goes.
"""

import json
from collections.abc import Sequence
from enum import Enum
from typing import Final

from pageferry.host.handoff import GUEST_KEY, PID_KEY, ROLE_KEY, Region, Role
from pageferry.limits import PAGE_BYTES

LINE_BYTES_MAX: Final = 64


class Word(Enum):
    ACCEPTED = b"accepted"
    COMPLETE = b"complete"
    LET_GO = b"let go"

    @property
    def line(self) -> bytes:
        return self.value + b"\n"


def message(regions: Sequence[Region], pid: int, role: Role = Role.BOTH) -> bytes:
    """Of a VM, which is this process; beside it go its descriptors, see Handoff."""
    elements: list[dict[str, object]] = [
        {
            "base_host_virt_addr": region.address,
            "size": region.length_bytes,
            "offset": region.offset_bytes,
            "page_size": PAGE_BYTES,
            **({} if region.guest_address is None else {GUEST_KEY: region.guest_address}),
        }
        for region in regions
    ]
    elements[0] |= {ROLE_KEY: role.value, PID_KEY: pid}
    return json.dumps(elements).encode()


class Lines:
    """What has come of a connection, cut into words."""

    def __init__(self) -> None:
        self._data = b""

    def take(self, part: bytes) -> list[Word]:
        """ValueError: the other end says what nobody knows."""
        *lines, self._data = (self._data + part).split(b"\n")
        if len(self._data) > LINE_BYTES_MAX:
            raise ValueError("a line is longer than any word")
        return [Word(line) for line in lines]

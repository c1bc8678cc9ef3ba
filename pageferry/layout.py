# SPDX-License-Identifier: Apache-2.0
"""Where the pages of an image lie in the guest's own address space: guest-physical address <-> page.

An image is the VM's RAM without its holes, and page numbers are all that travels; but machine checks, and
people, name guest-physical addresses. A layout is known from whoever has it: the hand-off, an operator, or an
adapter that knows its machine's rule.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from pageferry.limits import PAGE_BYTES
from pageferry.reasons import PageferryError, Reason

FORM: Final = "ADDRESS:SIZE+ADDRESS:SIZE, in image order, as in 0:3G+4G:5G"
SUFFIXES: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
FOUR_GIB: Final = 4 << 30
ADDRESS_END: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class GuestRegion:
    """Bytes; multiples of the page size."""

    guest_address: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The regions in image order, without a gap in the image."""

    regions: tuple[GuestRegion, ...]

    def __post_init__(self) -> None:
        end = 0
        for region in sorted(self.regions, key=lambda one: one.guest_address):
            if region.length_bytes <= 0 or (region.guest_address | region.length_bytes) % PAGE_BYTES:
                raise refused(f"a region at {region.guest_address:#x} is not of whole pages")
            if region.guest_address < end or region.guest_address + region.length_bytes > ADDRESS_END:
                raise refused(f"regions overlap at {region.guest_address:#x}, or go beyond 2^64")
            end = region.guest_address + region.length_bytes

    @property
    def length_bytes(self) -> int:
        return sum(region.length_bytes for region in self.regions)

    def page_of(self, guest_address: int) -> int:
        """The page that holds this byte. PageferryError OUT_OF_IMAGE: no memory lies there."""
        first_byte = 0
        for region in self.regions:
            into = guest_address - region.guest_address
            if 0 <= into < region.length_bytes:
                return (first_byte + into) // PAGE_BYTES
            first_byte += region.length_bytes
        raise PageferryError(
            Reason.OUT_OF_IMAGE,
            f"the guest has no memory at {guest_address:#x}",
            f"its memory lies at {self}",
        )

    def address_of(self, page: int) -> int:
        """ValueError: it is not within the image."""
        byte = page * PAGE_BYTES
        ends = accumulate(region.length_bytes for region in self.regions)
        for region, end in zip(self.regions, ends, strict=True):
            if 0 <= byte < end:
                return region.guest_address + region.length_bytes - (end - byte)
        raise ValueError(f"page {page} is not within the layout")

    def check(self, length_bytes: int) -> None:
        """PageferryError: it is of another memory."""
        if self.length_bytes != length_bytes:
            raise PageferryError(
                Reason.MISMATCH,
                f"the layout is of {self.length_bytes} bytes of memory, the VM has {length_bytes}",
                f"give it as the guest has it: {FORM}",
            )

    def __str__(self) -> str:
        return "+".join(f"{one.guest_address:#x}:{one.length_bytes:#x}" for one in self.regions)


def parse_layout(text: str) -> Layout:
    """PageferryError: it is none."""
    regions = []
    for part in text.split("+"):
        address, colon, size = part.partition(":")
        if not colon:
            raise refused(f"{part!r:.60} is no region")
        regions.append(GuestRegion(parse_number(address), parse_number(size)))
    return Layout(tuple(regions))


def parse_number(text: str) -> int:
    """4096, 0x1000, 3G. PageferryError: it is none."""
    stripped = text.strip()
    factor = SUFFIXES.get(stripped[-1:].upper(), 1) if not stripped.lower().startswith("0x") else 1
    try:
        number = int(stripped if factor == 1 else stripped[:-1], 0) * factor
    except ValueError:
        raise refused(f"{text!r:.60} is no number") from None
    if not 0 <= number < ADDRESS_END:
        raise refused(f"{text!r:.60} is beyond 2^64")
    return number


def pc_layout(memory_bytes: int, below_4g_bytes: int) -> Layout:
    """Of an x86 PC: what does not fit below 4 GiB goes on there."""
    below = min(memory_bytes, below_4g_bytes)
    regions = [GuestRegion(0, below)]
    if memory_bytes > below:
        regions.append(GuestRegion(FOUR_GIB, memory_bytes - below))
    return Layout(tuple(regions))


def layout_of(regions: Sequence[tuple[int | None, int]]) -> Layout | None:
    """From a hand-off's regions in image order: guest address, length. None: not all of them say where, or
    they cannot lie there."""
    known = tuple(GuestRegion(address, length) for address, length in regions if address is not None)
    with suppress(PageferryError):
        return Layout(known) if len(known) == len(regions) else None
    return None


def unknown_layout(vm: str) -> PageferryError:
    return PageferryError(
        Reason.UNSUPPORTED,
        f"where the memory of {vm} lies in the guest is not known: the VMM has not said so",
        f"name pages, or add layout={FORM.partition(',')[0]} to --vm",
    )


def refused(what: str) -> PageferryError:
    return PageferryError(Reason.BAD_REQUEST, f"that is no layout: {what}", f"write {FORM}")

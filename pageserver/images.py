# SPDX-License-Identifier: Apache-2.0
"""Names -> opened, checked image files."""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pageferry.limits import IMAGE_NAME_BYTES_MAX, IMAGE_PAGES_MAX, PAGE_BYTES, REGIONS_MAX
from pageferry.reasons import PageferryError, Reason

SIZE: Final = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
SUFFIXES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def refused(message: str, remedy: str) -> PageferryError:
    return PageferryError(Reason.BAD_REQUEST, message, remedy)


@dataclass(slots=True)
class ImageFile:
    """An open image file. `region_pages` are the VM's memory regions in image order."""

    name: str
    path: Path
    fd: int
    page_count: int
    region_pages: tuple[int, ...]

    @classmethod
    def open(cls, name: str, path: Path, region_bytes: Sequence[int] = ()) -> Self:
        """PageferryError: it is no image, or its regions do not add up to it. `region_bytes`: none is one."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise refused(
                f"cannot open the image {path}: {error.strerror}", "name a readable file"
            ) from error
        try:
            page_count = _page_count(path, os.fstat(fd))
            regions = _regions(name, page_count, region_bytes)
        except BaseException:
            os.close(fd)
            raise
        return cls(name, path, fd, page_count, regions)

    def close(self) -> None:
        os.close(self.fd)


def _page_count(path: Path, facts: os.stat_result) -> int:
    if not stat.S_ISREG(facts.st_mode):
        raise refused(f"{path} is no regular file", "name the copy of the VM's RAM file")
    if facts.st_size == 0 or facts.st_size % PAGE_BYTES:
        raise refused(
            f"{path} has {facts.st_size} bytes: an image is a whole number of pages of {PAGE_BYTES}",
            "was it copied to its end?",
        )
    if facts.st_size // PAGE_BYTES > IMAGE_PAGES_MAX:
        raise refused(f"{path} has more than {IMAGE_PAGES_MAX} pages", "serve a smaller image")
    return facts.st_size // PAGE_BYTES


def _regions(name: str, page_count: int, region_bytes: Sequence[int]) -> tuple[int, ...]:
    if not region_bytes:
        return (page_count,)
    if len(region_bytes) > REGIONS_MAX or any(size == 0 or size % PAGE_BYTES for size in region_bytes):
        raise refused(
            f"the regions of {name} must be 1 to {REGIONS_MAX} sizes, each a multiple of {PAGE_BYTES}",
            "give them as the VM has them, in image order",
        )
    if sum(region_bytes) != page_count * PAGE_BYTES:
        raise refused(
            f"the regions of {name} add up to {sum(region_bytes)} bytes, not to {page_count * PAGE_BYTES}",
            "give them as the VM has them, in image order",
        )
    return tuple(size // PAGE_BYTES for size in region_bytes)


def parse_named(text: str, what: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise refused(f"{text!r} is no {what}", f"give NAME={what.upper()}")
    if len(name.encode()) > IMAGE_NAME_BYTES_MAX:
        raise refused(
            f"the name {name!r} is longer than {IMAGE_NAME_BYTES_MAX} bytes", "choose a shorter one"
        )
    return name, value


def parse_size(text: str) -> int:
    """Bytes: 4096, 384M, 3G."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise refused(f"{text!r} is no size", "give bytes, or a number with K, M, G or T")
    return int(match[1]) * SUFFIXES[match[2].upper()]


def open_all(images: Sequence[str], regions: Sequence[str]) -> list[ImageFile]:
    """What --image and --regions name. PageferryError closes again what was opened before it."""
    sizes: Mapping[str, list[int]] = {
        name: [parse_size(size) for size in value.split(",")]
        for name, value in (parse_named(text, "sizes") for text in regions)
    }
    named = [parse_named(text, "path") for text in images]
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise refused(f"two images are named {name!r}", "give each a name of its own")
    for name in sizes:
        if name not in names:
            raise refused(f"--regions names {name!r}, which is no image here", "give --image for it")
    opened: list[ImageFile] = []
    try:
        for name, path in named:
            opened.append(ImageFile.open(name, Path(path), sizes.get(name, ())))
    except BaseException:
        for image in opened:
            image.close()
        raise
    return opened

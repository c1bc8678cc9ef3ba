# SPDX-License-Identifier: Apache-2.0
"""Names -> opened, checked image files.

An image is the copy of a VM's RAM file: whole pages, holes where the guest never wrote. What is checked here
costs nothing; what takes a look at every byte is dataplane.inspect.
"""

import errno
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pageferry import poison_file
from pageferry.layout import SUFFIXES
from pageferry.limits import IMAGE_PAGES_MAX, PAGE_BYTES, REGIONS_MAX
from pageferry.names import IMAGE_NAME_RULE, is_image_name
from pageferry.poison_file import PoisonRecord
from pageferry.reasons import PageferryError, Reason

SIZE: Final = re.compile(r"([0-9]{1,18})([KMGT]?)(?:i?B)?", re.IGNORECASE)
AS_THE_VM_HAS_THEM: Final = "give them as the VM has them, in image order: web-1=3G,1G"


def refused(message: str, remedy: str, reason: Reason = Reason.BAD_REQUEST) -> PageferryError:
    return PageferryError(reason, message, remedy)


# ------------------------------------------------------------------------------------------ as they are named


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What somebody wants served. `region_pages`: none for one region."""

    name: str
    path: Path
    region_pages: tuple[int, ...] = ()
    poison: Path | None = None  # its poison file; None: beside it


def parse_image(text: str) -> ImageSpec:
    """NAME=PATH."""
    name, path = _split(text, "NAME=PATH")
    if not is_image_name(name):
        raise refused(f"{name!r:.200} is no image's name", f"choose one of {IMAGE_NAME_RULE}")
    return ImageSpec(name, Path(path))


def parse_poison(text: str) -> tuple[str, Path]:
    """NAME=FILE."""
    name, path = _split(text, "NAME=FILE")
    return name, Path(path)


def parse_regions(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME=PAGES,PAGES: pages of each region, or sizes with K, M, G or T."""
    name, sizes = _split(text, "NAME=PAGES,PAGES")
    regions = tuple(parse_pages(size) for size in sizes.split(","))
    if len(regions) > REGIONS_MAX:
        raise refused(f"{name} has {len(regions)} regions", f"at most {REGIONS_MAX} can be served")
    return name, regions


def parse_pages(text: str) -> int:
    """262144, or the same as 1G."""
    match = SIZE.fullmatch(text.strip())
    if match is None or (match[2] == "" and match[0] != match[1]):
        raise refused(f"{text!r} is no size", "give a number of pages, or a size with K, M, G or T")
    number, suffix = int(match[1]), match[2].upper()
    page_count, rest = divmod(number * SUFFIXES[suffix], PAGE_BYTES) if suffix else (number, 0)
    if rest or page_count == 0:
        raise refused(
            f"a region of {text} is not one or more pages of {PAGE_BYTES} bytes", AS_THE_VM_HAS_THEM
        )
    return page_count


def _split(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise refused(f"{text!r} is not of the form {form}", f"give {form}")
    return name, value


# ----------------------------------------------------------------------------------------- as they are served


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An open image file. `region_pages` are the VM's memory regions in image order; they add up. `poison`:
    what its poison file says, if there is one."""

    name: str
    path: Path
    fd: int
    page_count: int
    region_pages: tuple[int, ...]
    poison_path: Path
    poison: PoisonRecord | None = None

    @classmethod
    def open(cls, spec: ImageSpec) -> Self:
        """PageferryError: it is no image, its regions do not add up to it, or its poison file cannot be
        understood."""
        fd = _open(spec.path)
        try:
            page_count = _page_count(spec.path, os.fstat(fd))
            regions = _regions(spec, page_count)
            poison_path = spec.poison or poison_file.beside(spec.path)
            poison = poison_file.load(poison_path, page_count)
        except BaseException:
            os.close(fd)
            raise
        return cls(spec.name, spec.path, fd, page_count, regions, poison_path, poison)

    @property
    def disk_bytes(self) -> int:
        """What it takes on the disk; holes take nothing."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        os.close(self.fd)


def open_all(specs: Sequence[ImageSpec]) -> list[ImageFile]:
    """All of them, or PageferryError and none stays open."""
    opened: list[ImageFile] = []
    try:
        for spec in specs:
            opened.append(ImageFile.open(spec))
    except BaseException:
        for image in opened:
            image.close()
        raise
    return opened


def _open(path: Path) -> int:
    try:
        # a pipe or a device is not waited for: it is refused
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        message = f"cannot open the image {path}: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            raise refused(message, "let this user read it", Reason.NOT_ALLOWED) from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise refused(message, "raise the limit on open files", Reason.NO_MEMORY) from error
        raise refused(message, "name the copy of the VM's RAM file") from error


def _page_count(path: Path, facts: os.stat_result) -> int:
    if not stat.S_ISREG(facts.st_mode):
        what = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
        raise refused(f"the image {path} is {what}", "name the copy of the VM's RAM file")
    if facts.st_size == 0:
        raise refused(f"the image {path} is empty", "name the copy of the VM's RAM file")
    page_count, rest = divmod(facts.st_size, PAGE_BYTES)
    if rest:
        raise refused(
            f"the image {path} has {facts.st_size} bytes, no multiple of {PAGE_BYTES}",
            "was it copied to its end? An image is the whole of the VM's RAM",
        )
    if page_count > IMAGE_PAGES_MAX:
        raise refused(f"the image {path} has {page_count} pages", f"at most {IMAGE_PAGES_MAX} can be served")
    return page_count


def _regions(spec: ImageSpec, page_count: int) -> tuple[int, ...]:
    if not spec.region_pages:
        return (page_count,)
    if sum(spec.region_pages) != page_count:
        raise refused(
            f"the regions of {spec.name} have {sum(spec.region_pages)} pages, its image has {page_count}",
            AS_THE_VM_HAS_THEM,
        )
    return spec.region_pages

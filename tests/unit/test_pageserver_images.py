# SPDX-License-Identifier: Apache-2.0
"""Images by name: what is no image is refused with its remedy, before anything is served."""

import os
import socket
from pathlib import Path

import pytest

from pageferry.limits import IMAGE_NAME_BYTES_MAX, IMAGE_PAGES_MAX, PAGE_BYTES, REGIONS_MAX
from pageferry.reasons import PageferryError, Reason
from pageserver.images import ImageFile, ImageSpec, open_all, parse_image, parse_pages, parse_regions
from tests.support.processes import unchanged


def make(path: Path, bytes_: int) -> Path:
    with path.open("wb") as file:
        file.truncate(bytes_)
    return path


def refusal(spec: ImageSpec) -> PageferryError:
    with unchanged(), pytest.raises(PageferryError) as caught:
        ImageFile.open(spec)
    assert caught.value.remedy
    return caught.value


# ----------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("web-1=/images/web-1.ram", ImageSpec("web-1", Path("/images/web-1.ram"))),
        ("a=b=c", ImageSpec("a", Path("b=c"))),
        ("größe=x", ImageSpec("größe", Path("x"))),
        (f"{'n' * IMAGE_NAME_BYTES_MAX}=x", ImageSpec("n" * IMAGE_NAME_BYTES_MAX, Path("x"))),
    ],
)
def test_an_image_is_a_name_and_a_path(text: str, spec: ImageSpec) -> None:
    assert parse_image(text) == spec


@pytest.mark.parametrize(
    "text",
    ["", "web-1", "=path", "web-1=", f"{'n' * (IMAGE_NAME_BYTES_MAX + 1)}=x", "ö" * 65 + "=x", "a\n=x"],
)
def test_what_names_no_image(text: str) -> None:
    with pytest.raises(PageferryError) as caught:
        parse_image(text)
    assert caught.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize(
    ("text", "page_count"),
    [
        ("1", 1),
        ("786432", 786432),
        ("4K", 1),
        ("3G", 786432),
        ("3GiB", 786432),
        ("8m", 2048),
        ("1T", 1 << 28),
    ],
)
def test_pages_or_sizes(text: str, page_count: int) -> None:
    assert parse_pages(text) == page_count


@pytest.mark.parametrize("text", ["", "0", "-1", "G", "1X", "1.5G", "4095B", "1K", "0G", "9" * 19, "٣"])
def test_what_is_no_region(text: str) -> None:
    with pytest.raises(PageferryError):
        parse_pages(text)


def test_regions() -> None:
    assert parse_regions("db-1=3G,1G,7") == ("db-1", (786432, 262144, 7))
    assert parse_regions(f"a={','.join(['1'] * REGIONS_MAX)}") == ("a", (1,) * REGIONS_MAX)
    for text in ("db-1", "db-1=", "db-1=1,,2", f"a={','.join(['1'] * (REGIONS_MAX + 1))}"):
        with pytest.raises(PageferryError):
            parse_regions(text)


# ------------------------------------------------------------------------------------------------------ files


def test_an_image_that_is_one(tmp_path: Path) -> None:
    path = make(tmp_path / "ram", 8 * PAGE_BYTES)
    with unchanged():
        image = ImageFile.open(ImageSpec("a", path))
        assert (image.name, image.path, image.page_count, image.region_pages) == ("a", path, 8, (8,))
        assert image.disk_bytes == 0, "a hole takes nothing"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(image.fd, b"opened to be read")
        image.close()


def test_regions_that_add_up(tmp_path: Path) -> None:
    path = make(tmp_path / "ram", 8 * PAGE_BYTES)
    image = ImageFile.open(ImageSpec("a", path, (5, 3)))
    assert image.region_pages == (5, 3)
    image.close()


@pytest.mark.parametrize("regions", [(5, 2), (5, 4), (8, 8)])
def test_regions_that_do_not(tmp_path: Path, regions: tuple[int, ...]) -> None:
    error = refusal(ImageSpec("a", make(tmp_path / "ram", 8 * PAGE_BYTES), regions))
    assert error.reason is Reason.BAD_REQUEST
    assert f"{sum(regions)} pages" in error.message
    assert "image has 8" in error.message


@pytest.mark.parametrize(
    ("bytes_", "says"),
    [
        (0, "is empty"),
        (1, "has 1 bytes, no multiple of 4096"),
        (PAGE_BYTES + 512, "no multiple"),
        ((IMAGE_PAGES_MAX + 1) * PAGE_BYTES, f"has {IMAGE_PAGES_MAX + 1} pages"),
    ],
)
def test_a_file_of_the_wrong_length(tmp_path: Path, bytes_: int, says: str) -> None:
    error = refusal(ImageSpec("a", make(tmp_path / "ram", bytes_)))
    assert error.reason is Reason.BAD_REQUEST
    assert says in error.message
    assert str(tmp_path / "ram") in error.message


def test_no_such_file(tmp_path: Path) -> None:
    error = refusal(ImageSpec("a", tmp_path / "ram"))
    assert error.reason is Reason.BAD_REQUEST
    assert "No such file" in error.message


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in refusal(ImageSpec("a", tmp_path)).message


def test_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(ImageSpec("a", tmp_path / "pipe")).message


def test_a_socket_and_a_device(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    assert refusal(ImageSpec("a", tmp_path / "socket")).reason is Reason.BAD_REQUEST
    assert "no regular file" in refusal(ImageSpec("a", Path("/dev/zero"))).message


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PageferryError) as caught:
        ImageFile.open(ImageSpec("a", tmp_path / "ram"))
    assert caught.value.reason is Reason.NOT_ALLOWED


def test_all_or_none(tmp_path: Path) -> None:
    good, bad = ImageSpec("a", make(tmp_path / "ram", PAGE_BYTES)), ImageSpec("b", tmp_path / "none")
    with unchanged():
        with pytest.raises(PageferryError):
            open_all([good, good, bad])
        opened = open_all([good, good])
        assert len({image.fd for image in opened}) == 2
        for image in opened:
            image.close()

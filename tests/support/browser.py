# SPDX-License-Identifier: Apache-2.0
"""Pages as a browser shows them: a headless Chromium writes a picture, and a test looks at its colours."""

import shutil
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from PIL import Image, ImageChops

NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
START: Final = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-extensions", "--mute-audio")
PATIENCE_S: Final = 60
Colour = tuple[int, int, int]


@cache
def browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name)) is not None), None)


needs_browser = pytest.mark.skipif(
    browser() is None, reason="no browser: install chromium-headless-shell, or chromium"
)


def screenshot(
    page: Path, picture: Path, *, width: int = 1120, height: int = 2000, dark: bool = False
) -> Image.Image:
    """What somebody sees of the page in a window of that size; kept as a PNG file, too."""
    program = browser()
    assert program is not None
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                program,
                *("--headless", *START, f"--user-data-dir={profile}", f"--window-size={width},{height}"),
                *(["--blink-settings=preferredColorScheme=0"] if dark else []),
                f"--screenshot={picture}",
                page.resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    if done.returncode != 0 or not picture.exists():
        raise AssertionError(f"{program} has made no picture ({done.returncode}): {done.stderr[-2000:]}")
    with Image.open(picture) as opened:
        return opened.convert("RGB")


def colours(picture: Image.Image) -> Counter[Colour]:
    """How many pixels there are of each."""
    listed = picture.getcolors(picture.width * picture.height) or []
    return Counter({colour: count for count, colour in listed})  # type: ignore[misc]  # RGB: three numbers


def colour_of(name: str) -> Colour:
    """#rrggbb"""
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)


def extent(picture: Image.Image, colour: Colour) -> tuple[int, int, int, int] | None:
    """The smallest box that holds every pixel of this colour: left, top, right, bottom; if there is one."""
    away = ImageChops.difference(picture, Image.new("RGB", picture.size, colour))
    alike = [band.point([255, *[0] * 255]) for band in away.split()]
    return ImageChops.darker(ImageChops.darker(alike[0], alike[1]), alike[2]).getbbox()

# SPDX-License-Identifier: Apache-2.0
"""What people see of a move, looked at: the live picture and `top` at a terminal, the report in a browser.

The move is real: it is the walk-through of docs/migrate.md, by its own commands. It is cancelled once, and
begun again. Every picture is kept in build/looks, for eyes.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from faultclient.commands.report import write_report
from tests.support.browser import colour_of, colours, extent, needs_browser, screenshot
from tests.support.initrd import ROOT
from tests.support.moves import failed
from tests.support.terminal import CTRL_C, Terminal
from tests.support.walk import Walk, blocks, wait_until

LOOKS = ROOT / "build" / "looks"
WIDTH = 1120
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")

# Of report.css.
PAGE = {"light": "#f5f6f9", "dark": "#0e1116"}
PRECOPY = {"light": "#3b82f6", "dark": "#4f8ff7"}
POSTCOPY = {"light": "#8b5cf6", "dark": "#9a73f5"}
GOOD = {"light": "#e5f6eb", "dark": "#12301f"}
BAD = {"light": "#fdeceb", "dark": "#3a1816"}
ABORTED = {"light": "#dc4040", "dark": "#e5605f"}
RAMP = ("#4357ad", "#f6c656")  # the map's first and last


@dataclass
class Walked:
    """Screens, by what was to be seen; and what is left of it."""

    report: Path
    texts: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    consoles: dict[str, str] = field(default_factory=dict)

    def keep(self, name: str, terminal: Terminal) -> None:
        self.texts[name], self.pages[name] = terminal.text, terminal.as_html()


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    folder = tmp_path_factory.mktemp("walk")
    with Walk(folder, rate_mbit=300) as walk:
        walk.begin()
        found = Walked(folder / "move.html")
        _cancel(walk, found)
        _move(walk, found)
        target = walk.programs["target-1"]
        wait_until(lambda: target.output.count("HB ") > 20, "heartbeats at the target")
        found.consoles = {name: walk.programs[name].output for name in ("source-0", "target-0", "target-1")}
    yield found


def _cancel(walk: Walk, found: Walked) -> None:
    """The command that has begun the move is killed; another one, which watches the same, cancels it."""
    with walk.terminal("migrate", " --session again") as killed:
        killed.wait_for(r"memory .* [1-9]\d*\.\d%")
    with walk.terminal("migrate", " --session again") as migrate:
        migrate.wait_for(r"memory .* [1-9]\d*\.\d%")
        migrate.press(CTRL_C)
        found.status["cancelled"] = migrate.wait()
        found.keep("cancelled", migrate)
    found.report.rename(found.report.with_name("cancelled.html"))
    wait_until(lambda: not walk.programs["target-0"].running, "the end of the target's QEMU")


def _move(walk: Walk, found: Walked) -> None:
    walk.start("target")
    with walk.run("faultclient top --interval 0.3", columns=130, lines=20) as top:
        top.wait_for(r"ABORTED")
        with walk.terminal("migrate") as migrate:
            migrate.wait_for(r"memory .* [3-8]\d\.\d%.*\n.*link +[1-9]\d*\.\d MB/s")
            found.keep("precopy", migrate)
            top.wait_for(r"PRECOPY +PRECOPY .* [3-9]\d% +\d+\.\d MB/s")
            found.keep("top, precopy", top)
            found.status["moved"] = migrate.wait()
            found.keep("moved", migrate)
        top.wait_for(r"RELEASED +RELEASED")
        found.keep("top, moved", top)
        top.press(CTRL_C)
        found.status["top"] = top.wait()


def pictured(name: str, html: str, *, width: int, height: int) -> Image.Image:
    """A terminal's screen as a picture."""
    LOOKS.mkdir(parents=True, exist_ok=True)
    page = LOOKS / f"{name}.html"
    page.write_text(html)
    return screenshot(page, LOOKS / f"{name}.png", width=width, height=height)


# -------------------------------------------------------------------------------------------- the walk itself


@needs_root
def test_the_guest_goes_on_where_it_was(walked: Walked) -> None:
    assert walked.status == {"cancelled": 75, "moved": 0, "top": 0}
    before = [int(number) for number in re.findall(r"^HB (\d+) ", walked.consoles["source-0"], re.MULTILINE)]
    after = [int(number) for number in re.findall(r"^HB (\d+) ", walked.consoles["target-1"], re.MULTILINE)]
    assert before == list(range(before[0], before[-1] + 1))
    assert after == list(range(after[0], after[-1] + 1))
    assert 1 <= after[0] - before[-1] <= 2, "one line may lie half on each console"
    assert set(re.findall(r"errors=(\d+)", walked.consoles["target-1"])) == {"0"}
    assert "HB " not in walked.consoles["target-0"], "the move that was cancelled never ran there"


def test_the_page_has_every_option() -> None:
    from faultclient.cli import cli

    text = (ROOT / "docs" / "migrate.md").read_text()
    options = [param.opts[0] for param in cli.commands["migrate"].params if param.opts[0].startswith("--")]
    assert [option for option in options if f"| `{option}" not in text] == []
    assert {"once", "every terminal", "page server", "source", "fault client", "target", "migrate"} == set(
        blocks()
    )


# --------------------------------------------------------------------------------------------- at a terminal


@needs_root
def test_the_live_picture_during_precopy(walked: Walked) -> None:
    text = walked.texts["precopy"]
    assert re.search(r"\d\.\d s  target  PRECOPY", text), "what has happened stands above"
    assert text.count("CREATED → PRECOPY → SWITCHOVER → POSTCOPY → COMMITTED → RELEASED") == 2
    assert re.search(r"^memory +━+.*\d\d\.\d%  \d+ MiB of 384 MiB$", text, re.MULTILINE)
    assert re.search(r"^link +\d+\.\d MB/s +\d+ MiB so far$", text, re.MULTILINE)
    assert "guest   runs at the source" in text
    assert text.count("memory ") == 1, "it is drawn in its place"


@needs_root
def test_the_live_picture_at_the_end(walked: Walked) -> None:
    text = walked.texts["moved"]
    assert "✓ runs there   ✓ all here   ✓ source may go   stood still" in text
    assert re.search(r"^memory +━+ +100\.0%", text, re.MULTILINE)
    assert re.search(r"^downtime_ms +\d+", text, re.MULTILINE)
    assert text.count("memory ") == 1


@needs_root
def test_the_live_picture_of_a_cancelled_move(walked: Walked) -> None:
    text = walked.texts["cancelled"]
    assert "it was started before: it is watched" in text
    assert "asking the target to cancel" in text
    assert "PRECOPY → ABORTED" in text
    assert "runs on at the source" in text
    assert "Error: it was cancelled [CANCELLED]" in text
    assert "Traceback" not in text


@needs_root
def test_top(walked: Walked) -> None:
    text = walked.texts["top, precopy"]
    assert "● page server 127.0.0.1:7851   ● fault client 127.0.0.1:7861" in text
    going, ended = [line for line in text.splitlines() if " web-1 " in line]
    assert re.search(r"web-1 +PRECOPY +PRECOPY +━+.* \d\d% +\d+\.\d MB/s", going)
    assert re.search(r"web-1 +ABORTED +ABORTED", ended), "what goes on stands first"
    assert re.search(r"RELEASED +RELEASED +━+ 100%", walked.texts["top, moved"])


@needs_root
@needs_browser
@pytest.mark.parametrize("name", ["precopy", "moved", "cancelled"])
def test_pictures_of_the_live_picture(walked: Walked, name: str) -> None:
    picture = pictured(name, walked.pages[name], width=960, height=620)
    seen = colours(picture)
    blue, red, green = (colour_of(one) for one in ("#6ea0fb", "#f0716b", "#6ccb7f"))
    assert seen[blue] > 100, "PRECOPY"
    assert (seen[red] > 100) == (name == "cancelled")
    assert (seen[green] > 500) == (name == "moved"), "three facts and a bar"


@needs_root
@needs_browser
@pytest.mark.parametrize("name", ["top, precopy", "top, moved"])
def test_pictures_of_top(walked: Walked, name: str) -> None:
    picture = pictured(name.replace(", ", "-"), walked.pages[name], width=1240, height=400)
    assert colours(picture)[colour_of("#6ccb7f")] > 40, "both ports answer"


# ---------------------------------------------------------------------------------------------- in a browser


def looked_at(report: Path, name: str, scheme: str) -> Image.Image:
    LOOKS.mkdir(parents=True, exist_ok=True)
    kept = LOOKS / f"{name}.html"
    kept.write_bytes(report.read_bytes())
    picture = LOOKS / f"{name}-{scheme}.png"
    return screenshot(kept, picture, width=WIDTH, height=2600, dark=scheme == "dark")


@needs_root
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_of_a_move(walked: Walked, scheme: str) -> None:
    picture = looked_at(walked.report, "report", scheme)
    assert picture.size == (WIDTH, 2600)
    seen = colours(picture)
    assert picture.getpixel((3, 3)) == colour_of(PAGE[scheme])
    assert seen[colour_of(GOOD[scheme])] > 500 and seen[colour_of(BAD[scheme])] < 100
    precopy, postcopy = (extent(picture, colour_of(one[scheme])) for one in (PRECOPY, POSTCOPY))
    assert precopy is not None and postcopy is not None
    assert precopy[2] - precopy[0] > WIDTH / 3, "most of the time"
    assert precopy[3] < picture.height / 2
    for colour in RAMP:
        where = extent(picture, colour_of(colour))
        assert where is not None
        assert where[1] > precopy[3], "the map lies below the phases"
        assert where[2] - where[0] > 100


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_of_a_move_that_failed(tmp_path: Path, scheme: str) -> None:
    clock = failed()
    write_report(tmp_path / "failed.html", clock.moving, clock.moving.error())
    picture = looked_at(tmp_path / "failed.html", "failed", scheme)
    seen = colours(picture)
    assert seen[colour_of(BAD[scheme])] > 5000, "the reason, in a field of its own"
    assert seen[colour_of(GOOD[scheme])] < 100
    assert seen[colour_of(ABORTED[scheme])] > 100


@needs_browser
def test_a_narrow_window_cuts_nothing_off(tmp_path: Path) -> None:
    """The page is no wider than a telephone: on its right edge there is nothing but the page."""
    clock = failed()
    write_report(tmp_path / "narrow.html", clock.moving, clock.moving.error())
    LOOKS.mkdir(parents=True, exist_ok=True)
    picture = screenshot(tmp_path / "narrow.html", LOOKS / "narrow.png", width=520, height=2600)
    edge = picture.crop((516, 0, 520, 2600))
    assert set(colours(edge)) == {colour_of(PAGE["light"])}

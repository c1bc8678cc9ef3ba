# SPDX-License-Identifier: Apache-2.0
"""The page about a move: it stands by itself, draws what was measured and nothing else, is written whole."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from faultclient.commands import migrate as module
from faultclient.commands.charts import ArrivalMap, Waits
from faultclient.commands.moving import Moving
from faultclient.commands.report import page, write_report
from faultclient.commands.svg import Scale, element, tick_text, ticks
from faultclient.commands.views import JsonLines
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.v1 import faultclient_pb2
from tests.support.moves import Clock, arrivals, failed, moved, options, precopy

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Checked(HTMLParser):
    """Every element is closed, in its order; keeps the names and attributes of all."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def count(self, tag: str, class_: str) -> int:
        return sum(name == tag and class_ in str(known.get("class")).split() for name, known in self.elements)


def text_of(moving: Moving, error: PageferryError | None = None) -> str:
    return "\n".join(page(moving, error))


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg viewBox.*?</svg>", text, re.DOTALL)]


# -------------------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize(
    "clock", [moved(), failed(), precopy(), Clock()], ids=["moved", "failed", "half", "none"]
)
def test_it_stands_by_itself(clock: Clock) -> None:
    text = text_of(clock.moving, clock.moving.error())
    checked = Checked(text)
    assert "script" not in {name for name, _ in checked.elements}
    named = [value for _, known in checked.elements for key, value in known.items() if key in ("src", "href")]
    assert named == []
    assert not re.search(r"@import|https?:|//[a-z]", text.replace("<!doctype html>", ""))
    assert re.findall(r"url\(([^)]*)\)", text) == ["#stripes"]
    assert 'id="stripes"' in text
    assert all(drawing.attrib["aria-label"] for drawing in drawings(text))


def test_what_is_lost_is_among_the_first_figures() -> None:
    text = text_of(moved().hear("target", pages_poisoned=1234).moving)
    assert re.search(r'figure">1,234</div><div class="what">pages are lost for good<', text)
    assert "lost for good" not in text_of(moved().moving)


def test_a_move_that_went_well() -> None:
    text = text_of(moved().moving)
    checked = Checked(text)
    assert checked.count("span", "good") == 1
    assert checked.count("div", "callout") == 0
    for words in (
        "61.3",
        "the guest stood still",
        "3.26",
        "632",
        "10.0.0.2:7861",
        "qemu 10.0.2, pc-i440fx-7.2",
    ):
        assert words in checked.words
    assert len(drawings(text)) == 3
    for phase in ("created", "precopy", "switchover", "postcopy", "released"):
        assert checked.count("rect", phase) == 2, "at both ends"
    assert checked.count("rect", "committed") == 1, "the source was seen in RELEASED only"
    assert checked.count("rect", "cell") == 1024 + 10, "and the legend"


def test_a_move_that_failed() -> None:
    clock = failed()
    checked = Checked(text_of(clock.moving, clock.moving.error()))
    assert checked.count("span", "bad") == 1
    assert "The guest runs on at the source." in checked.words
    assert "no fewer pages were missing" in checked.words
    assert "stood still" not in checked.words, "it never did"
    assert checked.count("rect", "pause") == 1
    assert checked.count("rect", "owed") == 424 + 1
    assert "424 pieces are not whole" in checked.words


def test_nothing_is_drawn_that_was_not_measured() -> None:
    """The target has died before it could be asked: no map, no waits, and it says so."""
    clock = moved()
    clock.moving.arrivals = None
    text = text_of(clock.moving)
    assert len(drawings(text)) == 1
    assert "When which memory came was not measured." in text
    assert "How long faults waited was not measured" in text
    clock.moving.arrivals = faultclient_pb2.Arrivals()
    assert len(drawings(text_of(clock.moving))) == 1


def test_before_anything_was_begun() -> None:
    refusal = PageferryError(Reason.NO_VMM, "there is no VM web-1", "name one")
    text = text_of(Clock().moving, refusal)
    assert "Nothing was begun: the guest runs on at the source." in text
    assert "there is no VM web-1; name one" in text


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (Phase.SWITCHOVER, Phase.SWITCHOVER, "was not heard to the end"),
        (Phase.ABORTED, Phase.ABORTED, "runs on at the source"),
        (Phase.SWITCHOVER, Phase.POSTCOPY, "runs at the target"),
        (Phase.LOST, Phase.LOST, "was not heard to the end"),
    ],
)
def test_where_the_guest_is(source: Phase, target: Phase, words: str) -> None:
    clock = Clock().at(1).hear("source", phase=int(source)).hear("target", phase=int(target))
    assert words in text_of(clock.moving, PageferryError(Reason.BUG, "x"))


def test_what_comes_from_outside_is_no_markup() -> None:
    clock = Clock(image="<b>&x", vm="<b>&x").at(1.0)
    clock.hear("target", phase=2, paused=int(Reason.BUG), message="<script>alert(1)</script>")
    clock.moving.notes.append((1.0, "<i>"))
    text = text_of(clock.moving, PageferryError(Reason.BUG, "<u>"))
    checked = Checked(text)
    assert not {"script", "i", "u"} & {name for name, _ in checked.elements}
    assert "<b>&x" in checked.words and "alert(1)" in checked.words


# ---------------------------------------------------------------------------------------------- the drawings


def test_phases_lie_where_they_were() -> None:
    text = text_of(moved().moving)
    lanes = drawings(text)[0]
    (bar,) = [
        one
        for one in lanes.iter("rect")
        if one.get("class") == "phase precopy" and float(one.get("y", 0)) < 40
    ]
    first, width = float(bar.get("x", 0)), float(bar.get("width", 0))
    axis = (1000 - 14 - 78) / 3.82
    assert first == pytest.approx(78 + 0.06 * axis, abs=0.1)
    assert width == pytest.approx((3.2 - 0.06) * axis, abs=0.1)
    assert "0.060 s to 3.200 s, 3.14 s" in bar.findtext("title", "")


def test_a_phase_too_short_to_be_seen_is_seen() -> None:
    clock = Clock().at(1.0).both(Phase.PRECOPY).at(1.0).both(Phase.SWITCHOVER).at(60.0)
    clock.both(Phase.POSTCOPY)
    lanes = drawings(text_of(clock.at(61.0).moving))[0]
    widths = [float(one.get("width", 0)) for one in lanes.iter("rect") if "phase" in str(one.get("class"))]
    assert min(widths) >= 2


def test_the_map_is_in_the_time_of_the_move() -> None:
    clock = moved()
    drawn = ArrivalMap(clock.moving, arrivals())
    assert (drawn.cells, drawn.whole, drawn.since) == (1024, 1024, "the start")
    assert "whole after 0.12 s" in drawn.drawn(), "the target began 0.02 s after this command"
    assert "runs there" in drawn.drawn()
    clock.moving.watched_only = True
    drawn = ArrivalMap(clock.moving, arrivals())
    assert "whole after 0.10 s" in drawn.drawn()
    assert "runs there" not in drawn.drawn(), "what lies between the two clocks is not known"


def test_waits() -> None:
    waits = Waits(arrivals())
    assert waits.count == 632
    assert [waits.quantile_us(share) for share in (0.5, 0.99, 1.0)] == [57, 3670, 6820]
    assert waits.longest_us == 6820
    bars = [one for one in ElementTree.fromstring(waits.drawn()).iter("rect") if one.get("class") == "wait"]
    assert len(bars) == 7
    counted = [re.match(r"\d+", bar.findtext("title", "")) for bar in bars]
    assert sum(int(one[0]) for one in counted if one is not None) == 632


def test_one_wait_alone() -> None:
    waits = Waits(faultclient_pb2.Arrivals(wait_us_max=[0], waits=[1]))
    assert "1 faults waited" in waits.drawn()


@pytest.mark.parametrize(
    ("high", "count", "marks"),
    [(6.2, 8, [0, 1, 2, 3, 4, 5, 6]), (100.0, 3, [0, 50, 100]), (0.5, 5, [0, 0.1, 0.2, 0.3, 0.4, 0.5])],
)
def test_ticks_are_round(high: float, count: int, marks: list[float]) -> None:
    assert ticks(high, count) == pytest.approx(marks)


def test_small_things() -> None:
    assert Scale(0, 10, 100, 200)(5) == 150
    assert Scale(0, 10, 100, 200)(50) == 200, "nothing leaves the drawing"
    assert element("rect", x=1.50, class_="a b", aria_label='"<') == (
        '<rect x="1.5" class="a b" aria-label="&quot;&lt;"></rect>'
    )
    assert [tick_text(value) for value in (0.1, 2000.0, 0.30000000000000004)] == ["0.1", "2,000", "0.3"]


# ---------------------------------------------------------------------------------------------- it is written


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "move.html"
    file.write_text("older")
    with monkeypatch.context() as patched:
        patched.setattr("faultclient.commands.report.tiles", lambda moving: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_report(file, moved().moving, None)
    assert file.read_text() == "older"
    write_report(file, moved().moving, None)
    assert file.read_text().startswith("<!doctype html>")
    assert [one.name for one in tmp_path.iterdir()] == ["move.html"]


@pytest.mark.parametrize(
    "error", [None, PageferryError(Reason.TOO_SLOW, "too slow")], ids=["moved", "failed"]
)
def test_the_command_writes_it_however_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: PageferryError | None
) -> None:
    import asyncio

    class Played:
        moving = moved().moving

        def __init__(self, *_: object) -> None:
            pass

        async def run(self) -> PageferryError | None:
            return error

    monkeypatch.setattr(module, "Migration", Played)
    file = tmp_path / "move.html"
    assert asyncio.run(module.migrate(options(report=file), JsonLines())) is error
    assert ("too slow" in file.read_text()) == (error is not None)


def test_a_report_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    class Played:
        moving = moved().moving

        def __init__(self, *_: object) -> None:
            pass

        async def run(self) -> None:
            return None

    monkeypatch.setattr(module, "Migration", Played)
    assert asyncio.run(module.migrate(options(report=tmp_path / "no" / "move.html"), JsonLines())) is None
    assert "the report is not written" in capsys.readouterr().err

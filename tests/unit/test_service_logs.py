# SPDX-License-Identifier: Apache-2.0
"""Log lines: one each, the event first; the same keys in both forms; repeats are counted."""

import json
from collections.abc import Iterator

import pytest
import structlog

from pageferry.service.logs import REPEAT_S, REPEATS_KEPT, Repeats, configure_logging, configured, log


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    written = capsys.readouterr()
    assert written.out == "", "standard output is for results"
    return written.err.splitlines()


def test_text_has_the_event_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    log.info("serving", data="127.0.0.1:1", pages=7, none=None)
    (line,) = lines(capsys)
    assert line.startswith("serving level=info data=127.0.0.1:1 pages=7 none=None timestamp=")


def test_json_has_the_same_keys_in_the_same_order(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    log.warning("drain_cut", open_calls=2)
    (line,) = lines(capsys)
    entry = json.loads(line)
    assert list(entry) == ["event", "level", "open_calls", "timestamp"]
    assert (entry["event"], entry["level"], entry["open_calls"]) == ("drain_cut", "warning", 2)


def test_auto_is_json_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("auto")
    log.info("ended")
    assert json.loads(lines(capsys)[0])["event"] == "ended"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_stays_one_line(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(form)
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        log.error("bug", text=str(error), exc_info=error)
    (line,) = lines(capsys)
    assert "Traceback" in line


@pytest.mark.parametrize("value", ["", "two words", 'a "quote"', "a=b", "tab\t", "line\n"])
def test_what_could_be_misread_is_quoted(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    log.info("event", value=value)
    assert f"value={value!r} " in lines(capsys)[0]


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    assert not configured()
    configure_logging("text", "warning")
    assert configured()
    log.debug("debug")
    log.info("info")
    log.warning("warning")
    log.error("error")
    assert [line.split()[0] for line in lines(capsys)] == ["warning", "error"]


def test_repeats_are_counted_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    for _ in range(1000):
        log.info("refused", peer="a")
    log.info("refused", peer="b")
    assert len(lines(capsys)) == 2


def test_after_a_while_the_line_comes_again_with_its_count() -> None:
    now = 0.0
    repeats = Repeats(lambda: now)

    def said(peer: str) -> structlog.typing.EventDict | None:
        try:
            return dict(repeats(None, "info", {"event": "refused", "peer": peer}))
        except structlog.DropEvent:
            return None

    assert said("a") == {"event": "refused", "peer": "a"}
    now = REPEAT_S / 2
    assert said("a") is None
    assert said("b") == {"event": "refused", "peer": "b"}
    assert said("a") is None
    now = REPEAT_S
    assert said("a") == {"event": "refused", "peer": "a", "repeated": 2}
    assert said("a") is None
    now = 3 * REPEAT_S
    assert said("a") == {"event": "refused", "peer": "a", "repeated": 1}


def test_a_flood_of_different_lines_takes_bounded_memory() -> None:
    repeats = Repeats(lambda: 0.0)
    for peer in range(10 * REPEATS_KEPT):
        repeats(None, "info", {"event": "refused", "peer": peer})
    assert len(repeats._written) <= REPEATS_KEPT

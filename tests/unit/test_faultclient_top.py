# SPDX-License-Identifier: Apache-2.0
"""`faultclient top` and `status`: sessions of several control ports as a table, as lines, as JSON; a refusal
where nobody answers."""

import asyncio
import io
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from faultclient.commands import top as module
from faultclient.commands.ports import RATE_WINDOW_S, Port, rows_of
from faultclient.commands.table import as_picture, columns
from faultclient.commands.top import Lines, Screen, look, ports_of
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.v1 import migrations_pb2
from tests.support.fake_ends import Ends
from tests.support.processes import finished, script

REFUSED = PageferryError(Reason.GOING_AWAY, "the fault client at A did not answer: Connection refused")


def session(name: str = "move-1", phase: Phase = Phase.PRECOPY, since_s: int = 1000, **fields: Any) -> Any:
    """As a fault client has it."""
    known: dict[str, Any] = {
        "session": name,
        "image": "web-1",
        "phase": int(phase),
        "revision": 3,
        "phase_since": Timestamp(seconds=since_s),
        "pages_total": 4096,
        "pages_settled": 1024,
        "faults": 77,
        "faults_waiting": 2,
        "blocktime_us": 1500,
        "downtime_us": 48_000,
        "round": 3,
        "dirty_pages": 1204,
    }
    return migrations_pb2.Session(**(known | fields))


def ports(*sessions: tuple[str, migrations_pb2.Session]) -> list[Port]:
    """One port a side."""
    made = {
        side: Port(side, f"10.0.0.{number}:78{number}1") for number, side in ((5, "source"), (6, "target"))
    }
    for side, one in sessions:
        made[side].sessions.append(one)
    return list(made.values())


def rendered(asked: list[Port], width: int = 140, height: int | None = None) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(as_picture(asked, rows_of(asked), width, height))
    return captured.get()


# ----------------------------------------------------------------------------------------------- the table


def test_what_is_lost_is_said_once() -> None:
    both = ports(("source", session(pages_poisoned=3)), ("target", session(pages_poisoned=4)))
    said = re.findall(r"^move-1: .*lost.*$", rendered(both), re.MULTILINE)
    assert said == ["move-1: 4 pages lost for good"]
    assert "move-1: 1 page lost" in rendered(ports(("source", session(pages_poisoned=1))))
    assert "lost" not in rendered(ports(("source", session())))


def test_both_ends_of_a_move_are_one_row() -> None:
    text = rendered(ports(("source", session(pages_settled=0)), ("target", session())))
    (row,) = [line for line in text.splitlines() if line.startswith("move-1")]
    assert re.search(r"move-1 +web-1 +PRECOPY +PRECOPY .*25%", row)
    assert "~48.0 ms" in row, "an estimate"
    assert "3: 1,204 pages" in row
    assert "77 (2 wait)" in row
    assert "1.5 ms" in row
    assert "● page server 10.0.0.5:7851   ● fault client 10.0.0.6:7861" in text


def test_one_end_alone() -> None:
    text = rendered(ports(("source", session("a")), ("target", session("b"))))
    assert re.search(r"a +web-1 +PRECOPY +-", text)
    assert re.search(r"b +web-1 +- +PRECOPY", text)


def test_the_same_name_at_two_targets_is_two_rows() -> None:
    asked = [Port("target", f"10.0.0.{number}:7861", [session("restore")]) for number in (1, 2)]
    text = rendered(asked)
    assert "PRECOPY 10.0.0.1:7861" in text and "PRECOPY 10.0.0.2:7861" in text


def test_a_side_that_nobody_is_asked_of_has_no_column() -> None:
    assert "source" not in [one.name for one in columns([Port("target", "a")], 200)]
    names = [one.name for one in columns([Port("source", "a")], 200)]
    assert {"target", "memory", "faults"}.isdisjoint(names)


def test_measured_is_no_estimate() -> None:
    assert " 48.0 ms" in rendered(ports(("target", session(phase=Phase.POSTCOPY))))


def test_what_goes_on_comes_first_then_the_newest() -> None:
    listed = [
        session("old-end", Phase.RELEASED, 100),
        session("new-end", Phase.ABORTED, 300),
        session("going", Phase.POSTCOPY, 50),
    ]
    rows = rows_of(ports(*(("target", one) for one in listed)))
    assert [row.either.session for row in rows] == ["going", "new-end", "old-end"]


def test_a_session_whose_source_goes_on_goes_on() -> None:
    asked = ports(("target", session(phase=Phase.RELEASED)), ("source", session(phase=Phase.COMMITTED)))
    assert not rows_of(asked)[0].ended


def test_why_nothing_moves_and_why_it_failed() -> None:
    paused = session("a", paused=int(Reason.GOING_AWAY), message="dial: Connection refused")
    failed = session("b", Phase.ABORTED, failure=int(Reason.MISMATCH), message="other machine types")
    text = rendered(ports(("target", paused), ("target", failed)))
    assert "a: target PRECOPY PAUSED GOING_AWAY: dial: Connection refused" in text
    assert "b: target ABORTED MISMATCH: other machine types" in text


def test_a_message_is_text_and_no_markup() -> None:
    assert "[red]x[/red]" in rendered(ports(("target", session(message="[red]x[/red]"))))


def test_a_port_that_does_not_answer() -> None:
    asked = ports(("target", session()))
    asked[0].error = REFUSED
    assert "● page server 10.0.0.5:7851 GOING_AWAY" in rendered(asked)


def test_no_session() -> None:
    assert rendered(ports()).rstrip().endswith("no session")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_it_fits(width: int) -> None:
    asked = ports(("source", session("move-5f0c12ab34cd")), ("target", session("move-5f0c12ab34cd")))
    lines = rendered(asked, width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("PRECOPY" in line and "25%" in line for line in lines) or width < 80


def test_a_low_screen_keeps_what_goes_on() -> None:
    many = [("target", session(f"end-{number}", Phase.RELEASED, number)) for number in range(30)]
    text = rendered(ports(*many, ("target", session("going"))), height=12)
    assert len(text.splitlines()) <= 12
    assert "going" in text and "end-29" in text and "end-0 " not in text
    assert "and 24 more" in text


def test_the_rate_is_that_of_late() -> None:
    port = Port("target", "a")
    for second in range(10):
        port.take([session(wire_bytes=second * 100_000_000)], float(second))
    assert port.bytes_per_s("move-1") == pytest.approx(100e6)
    port.take([session(wire_bytes=900_000_000)], 10.0 + RATE_WINDOW_S)
    assert port.bytes_per_s("move-1") == 0
    assert port.bytes_per_s("other") == 0


# --------------------------------------------------------------------------------------------------- lines


def printed(capsys: pytest.CaptureFixture[str], lines: Lines, asked: list[Port]) -> list[str]:
    lines.looked(asked)
    return capsys.readouterr().out.splitlines()


def test_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    lines, asked = Lines(as_lines=False), ports(("target", session()))
    (line,) = printed(capsys, lines, asked)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  move-1  web-1  target  PRECOPY  25% of 4096 pages  0 MiB", line)
    assert printed(capsys, lines, asked) == []
    asked[1].sessions = [session(pages_settled=2048)]
    assert "50%" in printed(capsys, lines, asked)[0]


def test_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(as_lines=True)
    told = [
        json.loads(line)
        for line in printed(capsys, lines, ports(("source", session()), ("target", session())))
    ]
    assert [(one["side"], one["address"]) for one in told] == [
        ("source", "10.0.0.5:7851"),
        ("target", "10.0.0.6:7861"),
    ]
    assert set(told[0]) == {"side", "address", *(field.name for field in session().DESCRIPTOR.fields)}
    assert (told[0]["phase"], told[0]["failure"], told[0]["pages_settled"]) == ("PRECOPY", None, 1024)
    assert told[0]["phase_since"] == "1970-01-01T00:16:40Z"


def test_silence_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines, asked = Lines(as_lines=True), ports()
    asked[0].error = REFUSED
    lines.looked(asked)
    lines.looked(asked)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("did not answer") == 1


def test_a_screen_gives_the_terminal_back() -> None:
    written = io.StringIO()
    with Screen(Console(file=written, force_terminal=True, width=100, height=20)) as screen:
        screen.looked(ports(("target", session())))
    text = written.getvalue()
    assert text.startswith("\x1b[?1049h") and text.endswith("\x1b[?25h\x1b[?1049l")
    assert "PRECOPY" in text


# ---------------------------------------------------------------------------------------------------- ports


@contextmanager
def both_up(folder: Path) -> Iterator[Ends]:
    """Both ends, in a loop of their own thread."""
    started, over = threading.Event(), asyncio.Event()
    held: list[Any] = []

    async def serve() -> None:
        async with Ends(folder) as ends:
            ends.source.begin("move-1", "web-1")
            ends.target.begin("move-1", "web-1", pages_settled=500)
            held.extend((ends, asyncio.get_running_loop()))
            started.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield held[0]
    finally:
        held[1].call_soon_threadsafe(over.set)
        thread.join(30)


def test_a_look_at_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with both_up(tmp_path) as ends:
        look(ports_of([ends.target.address], [ends.source.address]), as_lines=False, given=True)
    text = capsys.readouterr().out
    assert re.search(r"move-1 +web-1 +CREATED +CREATED .*50%", text)


def test_status_is_a_look_at_one(tmp_path: Path) -> None:
    with both_up(tmp_path) as ends:
        ended = finished("faultclient", "status", "--address", ends.target.address)
        as_json = finished("faultclient", "status", "--address", ends.target.address, "--json")
    assert ended.status == 0
    assert "move-1" in ended.output and "50%" in ended.output
    assert json.loads(as_json.output)["pages_settled"] == 500


def test_top_goes_on_until_it_is_ended(tmp_path: Path) -> None:
    with both_up(tmp_path) as ends:
        given = ("--target", ends.target.address, "--source", ends.source.address, "--interval=0.1", "--json")
        with script("faultclient", "top", *given, folder=tmp_path) as process:
            process.wait_until(lambda: process.output.count("\n") == 2, "both sessions")
            assert process.end(signal.SIGINT) == 0
    assert {json.loads(line)["side"] for line in process.output.splitlines()} == {"source", "target"}


@pytest.mark.parametrize("given", [True, False], ids=["named", "by default"])
def test_one_of_two_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: bool) -> None:
    """On a host there is often only one of them."""
    with both_up(tmp_path) as ends:
        asked = ports_of([ends.target.address], [f"unix:{tmp_path}/nobody"])
        if given:
            with pytest.raises(PageferryError, match="did not answer"):
                look(asked, as_lines=False, given=True)
        else:
            look(asked, as_lines=False, given=False)
    assert "move-1" in capsys.readouterr().out, "what there is is shown all the same"


@pytest.mark.parametrize(
    "address", [lambda path: f"unix:{path}/nobody.sock", lambda path: "127.0.0.1:1"], ids=["unix", "tcp"]
)
def test_nobody_answers(tmp_path: Path, address: Callable[[Path], str]) -> None:
    with pytest.raises(PageferryError, match="did not answer") as caught:
        look(ports_of([address(tmp_path)], []), as_lines=False, given=True)
    assert caught.value.exit_code == 69
    assert "faultclient serve" in caught.value.remedy


def test_somebody_else_answers() -> None:
    """A port that speaks gRPC and knows no sessions."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(PageferryError, match="did not answer") as caught:
            look(ports_of([f"127.0.0.1:{port}"], []), as_lines=False, given=True)
        assert caught.value.exit_code == 71
    finally:
        server.stop(None).wait()


def test_a_bug_while_looking_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Broken(Lines):
        def looked(self, ports: Any) -> None:
            raise ZeroDivisionError

    monkeypatch.setattr(module, "Lines", Broken)
    with pytest.raises(ZeroDivisionError):
        module.watch(ports_of([f"unix:{tmp_path}/nobody"], []), as_lines=True, interval_s=0.1)

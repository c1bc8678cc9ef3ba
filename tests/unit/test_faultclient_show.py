# SPDX-License-Identifier: Apache-2.0
"""`faultclient status`: a table for people, JSON for programs, a refusal where nobody answers."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from rich.console import Console

from faultclient.commands import show as module
from faultclient.commands.show import as_table, show
from pageferry.reasons import PageferryError
from pageferry.v1 import migrations_pb2, pages_pb2


def session(name: str = "restore", message: str = "") -> migrations_pb2.Session:
    return migrations_pb2.Session(
        session=name,
        image="web-1",
        phase=pages_pb2.PHASE_POSTCOPY,
        paused=pages_pb2.REASON_GOING_AWAY if message else pages_pb2.REASON_UNSPECIFIED,
        message=message,
        pages_total=4096,
        pages_settled=1024,
        faults=77,
        faults_waiting=2,
        blocktime_us=1500,
    )


def answering(monkeypatch: pytest.MonkeyPatch, *sessions: migrations_pb2.Session) -> None:
    def listed(_: str) -> list[migrations_pb2.Session]:
        return list(sessions)

    monkeypatch.setattr(module, "sessions", listed)


def rendered(*sessions: migrations_pb2.Session, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(as_table(list(sessions)))
    return captured.get()


def test_a_table() -> None:
    text = rendered(session(), session("other", "page server 10.0.0.1:7850: dial: Connection refused"))
    assert "1024 of 4096 (25%)" in text
    assert "POSTCOPY" in text
    assert "PAUSED GOING_AWAY" in text
    assert "1.5 ms" in text
    assert "Connection refused" in text


def test_a_message_is_text_and_no_markup() -> None:
    assert "[red]x[/red]" in rendered(session("a", "[red]x[/red]"))


def test_json_has_every_field(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answering(monkeypatch, session(), session("other"))
    show("ignored", as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["session"], second["session"]) == ("restore", "other")
    assert first["phase"] == "PHASE_POSTCOPY"
    assert first["failure"] == "REASON_UNSPECIFIED"
    assert first["pagesSettled"] == "1024"


def test_no_session(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answering(monkeypatch)
    show("ignored", as_json=False)
    assert capsys.readouterr().out == "no session\n"
    show("ignored", as_json=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "address", [lambda path: f"unix:{path}/nobody.sock", lambda path: "127.0.0.1:1"], ids=["unix", "tcp"]
)
def test_nobody_answers(tmp_path: Path, address: Callable[[Path], str]) -> None:
    with pytest.raises(PageferryError, match="did not answer") as caught:
        show(address(tmp_path), as_json=False)
    assert caught.value.exit_code == 69
    assert "faultclient run" in caught.value.remedy


def test_somebody_else_answers() -> None:
    """A port that speaks gRPC and knows no sessions."""
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(PageferryError, match="did not answer") as caught:
            show(f"127.0.0.1:{port}", as_json=False)
        assert caught.value.exit_code == 71
    finally:
        server.stop(None).wait()

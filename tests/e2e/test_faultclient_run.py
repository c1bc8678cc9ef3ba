# SPDX-License-Identifier: Apache-2.0
"""`faultclient run` as its operator meets it: signals, time limits, ports, status, metrics, its last word.

Clients whose guest runs ignore SIGTERM; a test that is done with one kills it.
"""

import http.client
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import Guest, Shape
from tests.support.handoff_client import Memory, Vmm
from tests.support.pair import Client, client, serve
from tests.support.processes import PATIENCE_S, Process, command, finished
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
SHAPE = Shape((256,), seed=30)
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with serve(folder, {"vm": SHAPE.make_image(folder / "image")}) as running:
        yield running


def boot(run: Client, folder: Path, *, memory: str = "memfd") -> Guest:
    return Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory)


def events(run: Process) -> list[dict[str, str]]:
    return [json.loads(line) for line in run.log.splitlines()]


def last_event(run: Process) -> dict[str, str]:
    return events(run)[-1]


# ----------------------------------------------------------------------------------------- status and metrics


def test_status_and_metrics_while_it_runs(server: Process, folder: Path) -> None:
    options = ("--no-background", "--session=web-1", "--metrics-listen=127.0.0.1:0")
    with client(folder, server.ready["data"], *options) as run, boot(run, folder) as guest:
        guest.ready()
        guest.do("touch", *range(10))
        address = run.control_address()

        shown = finished("faultclient", "status", f"--address={address}")
        assert shown.status == 0
        assert re.search(r"web-1 .*vm .*POSTCOPY .* 3% ", shown.output)

        (line,) = finished("faultclient", "status", "--json", f"--address={address}").output.splitlines()
        status = json.loads(line)
        assert status["phase"] == "POSTCOPY"
        assert (status["pages_total"], status["pages_settled"]) == (256, 10)
        assert status["faults"] >= 10
        assert status["blocktime_us"] > 0

        metrics = next(event["metrics"] for event in events(run) if event["event"] == "serving")
        host, _, port = metrics.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        assert re.search(r"^pageferry_asks_total 10\.0$", text, re.MULTILINE)
        assert re.search(r"^pageferry_fault_fetch_ns_count 10\.0$", text, re.MULTILINE)

        guest.do("all")
        figures = run.outcome()
    assert figures["session"] == "web-1"
    assert figures["reason"] is None
    assert figures["fault_p50_us"] > 0
    assert not run.handoff.exists()


def test_a_terminal_shows_how_far_it_is(server: Process, folder: Path) -> None:
    """On stderr; the log's lines stay whole beside it, and stdout is for the result."""
    handoff = folder / "terminal.sock"
    arguments = [f"--socket={handoff}", f"--data-address={server.ready['data']}", "--image=vm", "--json"]
    master, slave = pty.openpty()
    start = [*command("faultclient"), "run", *arguments, "--control-listen=127.0.0.1:0", "--no-background"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=slave, env=environment) as run:
        try:
            os.close(slave)
            deadline = time.monotonic() + PATIENCE_S
            while not handoff.exists():
                assert run.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            with Guest(SHAPE, handoff=handoff, folder=folder) as guest:
                guest.ready()
                guest.do("touch", *range(64))
                guest.do("all")
                shown = all_of(master)
                out, _ = run.communicate(timeout=PATIENCE_S)
        finally:
            run.kill()
            os.close(master)
    assert run.returncode == 0
    assert json.loads(out)["phase"] == "RELEASED"
    rows = re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown))
    assert any(row.startswith("RELEASED ") and " 256/256 pages " in row for row in rows)
    assert [row for row in rows if row.startswith("phase ")]
    assert not [row for row in rows if "level=info" in row and " pages " in row]


def all_of(terminal: int) -> str:
    """What is written to it, until nobody has it open any more."""
    text = b""
    while True:
        try:
            text += os.read(terminal, 4096)
        except OSError:
            return text.decode()


# ---------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_before_a_vmm_comes(server: Process, folder: Path, number: signal.Signals) -> None:
    with client(folder, server.ready["data"]) as run:
        assert run.end(number) == 75
        assert last_event(run)["text"] == f"ended by {number.name} before a VMM came"
        assert not run.handoff.exists()


def test_ended_before_the_guest_runs(folder: Path) -> None:
    """The page server is not there: nothing depends on us yet."""
    with client(folder, NOBODY) as run, boot(run, folder) as guest:
        run.wait_log("paused")
        assert run.end() == 75
        assert last_event(run)["reason"] == "CANCELLED"
        assert json.loads(run.output)["phase"] == "ABORTED"
        guest.close()


def test_not_ended_once_the_guest_runs(server: Process, folder: Path) -> None:
    with client(folder, server.ready["data"], "--no-background") as run, boot(run, folder) as guest:
        guest.ready()
        run.wait_log("ARMED")
        for number in (signal.SIGTERM, signal.SIGINT):
            run.kick(number)
            run.wait_log(f'"signal": "{number.name}"')
        run.kick(signal.SIGUSR2)
        report = guest.do("all")
        figures = run.outcome()
    assert report.errors == 0
    assert figures["phase"] == "RELEASED"
    assert figures["reason"] is None


def test_the_trace_of_the_last_steps(server: Process, folder: Path) -> None:
    with client(folder, server.ready["data"], "--no-background") as run, boot(run, folder) as guest:
        guest.ready()
        guest.do("touch", 7)
        run.kick(signal.SIGUSR2)
        run.wait_log('"trace"')
        steps = [event["step"] for event in events(run) if event["event"] == "trace"]
        assert any(" page=7 MISSING + " in step for step in steps)


# ------------------------------------------------------------------------------------------------ time limits


def test_no_vmm_in_time(server: Process, folder: Path) -> None:
    with client(folder, server.ready["data"], "--handoff-timeout=0.1") as run:
        assert run.wait() == 75
        assert last_event(run)["reason"] == "TOO_SLOW"


def test_no_page_server_in_time(folder: Path) -> None:
    with client(folder, NOBODY, "--attach-timeout=0.1") as run, boot(run, folder):
        assert run.wait() == 69
        assert last_event(run)["reason"] == "GOING_AWAY"
        assert json.loads(run.output)["reason"] == "GOING_AWAY"


def test_a_page_server_that_comes_in_time(server: Process, folder: Path) -> None:
    with client(folder, f"unix:{folder}/late.sock") as run, boot(run, folder) as guest:
        run.wait_log("paused")
        with serve(folder, {"vm": folder / "image"}, listen=f"unix:{folder}/late.sock"):
            assert guest.ready().do("all").errors == 0
            assert run.outcome()["phase"] == "RELEASED"


# ------------------------------------------------------------------------------------------ before it may run


def test_only_when_all_pages_are_here(server: Process, folder: Path) -> None:
    """Before that a thread of the guest waits, with the page server's bytes in the cache behind it."""
    with (
        client(folder, server.ready["data"], "--postcopy=forbid") as run,
        boot(run, folder) as guest,
    ):
        guest.ready()
        report = guest.do("all")
        figures = run.outcome()
    names = [event["event"] + event.get("phase", "") for event in events(run)]
    assert names.index("attached") < names.index("populated") < names.index("phasePOSTCOPY")
    assert report.errors == 0
    assert figures["asks_total"] == 0
    assert figures["bulk_pages_total"] == len(SHAPE.data_pages(folder / "image"))


def test_private_memory_cannot_be_filled_before(server: Process, folder: Path) -> None:
    with (
        client(folder, server.ready["data"], "--postcopy=forbid") as run,
        boot(run, folder, memory="private"),
    ):
        assert run.wait() == 71
        assert "at-once" in last_event(run)["remedy"]


# ----------------------------------------------------------------------------------------- what stands beside


def test_a_taken_control_port_is_known_before_a_vmm_comes(server: Process, folder: Path) -> None:
    """It used to be found when the guest was running already, and ended the pager."""
    with client(folder, server.ready["data"], "--no-background") as run, boot(run, folder) as guest:
        guest.ready()
        address = run.control_address()
        arguments = [f"--socket={folder}/second.sock", f"--data-address={server.ready['data']}", "--image=vm"]
        second = finished("faultclient", "run", *arguments, f"--control-listen={address}")
        assert second.status == 69
        assert f"cannot listen on {address}" in second.log
        assert '"waiting"' not in second.log


def test_a_second_client_on_the_same_socket_leaves_the_first_alone(server: Process, folder: Path) -> None:
    with client(folder, server.ready["data"]) as run:
        arguments = [f"--socket={run.handoff}", f"--data-address={server.ready['data']}", "--image=vm"]
        second = finished("faultclient", "run", *arguments, "--control-listen=127.0.0.1:0")
        assert second.status == 69
        assert "another fault client listens" in second.log
        with boot(run, folder) as guest:
            guest.ready()
            run.outcome()


def test_a_control_port_that_fails_later_does_not_end_the_pager(server: Process, folder: Path) -> None:
    gone = folder / "gone"
    gone.mkdir()
    options = ("--no-background", f"--control-listen=unix:{gone}/control.sock")
    with client(folder, server.ready["data"], *options) as run:
        gone.rmdir()
        with boot(run, folder) as guest:
            guest.ready()
            run.wait_log("goes_on_without")
            report = guest.do("all")
            assert run.outcome()["phase"] == "RELEASED"
    assert report.errors == 0
    (line,) = [event for event in events(run) if event["event"] == "goes_on_without"]
    assert line["what"] == "control port"
    assert str(gone) in line["text"]


def test_nowhere_to_say_that_it_is_ready(server: Process, folder: Path) -> None:
    arguments = [f"--socket={folder}/unready.sock", f"--data-address={server.ready['data']}", "--image=vm"]
    ended = finished("faultclient", "run", *arguments, f"--ready-file={folder}/absent/ready")
    assert ended.status == 65
    assert "cannot write" in ended.log


# ---------------------------------------------------------------------------------------------- the VMM's end


def test_the_vmm_is_killed_while_pages_are_missing(server: Process, folder: Path) -> None:
    with client(folder, server.ready["data"], "--no-background") as run, boot(run, folder) as guest:
        guest.ready()
        guest.do("touch", 1, 2, 3)
        guest.kick(signal.SIGKILL)
        assert run.wait() == 69
        assert last_event(run)["reason"] == "NO_VMM"
        figures = json.loads(run.output)
        assert (figures["reason"], figures["phase"]) == ("NO_VMM", "RELEASED")
        assert figures["faults_total"] >= 3


def test_the_vmm_is_killed_before_the_guest_runs(folder: Path) -> None:
    with client(folder, NOBODY) as run, boot(run, folder) as guest:
        run.wait_log("paused")
        guest.kick(signal.SIGKILL)
        assert run.wait() == 69
        assert last_event(run)["reason"] == "NO_VMM"


def test_the_vmm_dies_in_its_hand_off(server: Process, folder: Path) -> None:
    with client(folder, server.ready["data"]) as run:
        with Vmm(run.handoff) as vmm:
            vmm.send(b'[{"base_host_virt_addr":')
        assert run.wait() == 65
        assert "closed the socket before" in last_event(run)["text"]


def test_the_vmm_exits_as_soon_as_all_pages_are_here(server: Process, folder: Path) -> None:
    """Each time the guest ends with its last page, and the two pieces of news come together."""
    for _ in range(5):
        with client(folder, server.ready["data"], "--no-background") as run, boot(run, folder) as guest:
            guest.ready()
            guest.do("touch", *range(SHAPE.page_count))
            guest.kick(signal.SIGKILL)
            assert run.outcome()["phase"] == "RELEASED"


def test_memory_of_a_vmm_that_lives_on_is_let_go(server: Process, folder: Path) -> None:
    """After the client's end the memory is registered for nothing any more, and reads without it."""
    with Memory(SHAPE.page_count) as memory, client(folder, server.ready["data"]) as run:
        with Vmm(run.handoff) as vmm:
            vmm.send(memory.layout(), memory.fds)
            run.outcome()
        smaps = Path("/proc/self/smaps").read_text()
        mapping = smaps[smaps.index(f"{memory.address:x}-") :]
        flags = mapping[mapping.index("VmFlags:") :].splitlines()[0].split()
        assert not {"um", "ui"} & set(flags)

# SPDX-License-Identifier: Apache-2.0
"""Lost pages from end to end: a bad sector, an operator's word, a move. What is lost raises SIGBUS in the
guest, and nothing else does; it is told once; it stays so over restarts, and over saving and serving again.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from faultclient.cli import cli as faultclient
from pageferry.phases import Phase
from pageferry.reasons import PageferryError
from pageferry.v1 import faultclient_pb2, migrations_pb2
from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.faultclient_pb2_grpc import FaultClientServiceStub
from pageferry.v1.migrations_pb2_grpc import MigrationServiceStub
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from pageserver.cli import cli as pageserver
from tests.support.bad_disk import BadDisk, NoBadDisk
from tests.support.guest import Guest, Shape
from tests.support.pair import client, serve
from tests.support.processes import PATIENCE_S, POLL_S, Process, command, finished
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd
from tests.wire.page_server import PAGE_BYTES, fours

SHAPE = Shape((512,), seed=61)
COMMANDS = {"faultclient": faultclient, "pageserver": pageserver}
SHIM = Path(__file__).parents[2] / "native/build/pageferry-shim.so"


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


def pages_of(runs: Iterable[Iterable[int]]) -> set[int]:
    return {page for first, count in runs for page in range(first, first + count)}


def asked(who: str, *words: object) -> dict[str, Any]:
    """`pageserver poison ...` or `faultclient poison ...`, in this process: that is quick."""
    done = CliRunner().invoke(COMMANDS[who], ["poison", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def refused(who: str, *words: object) -> tuple[int, str]:
    """Exit code, and what is said."""
    done = CliRunner().invoke(COMMANDS[who], ["poison", *map(str, words)])
    if isinstance(done.exception, PageferryError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


def at(address: object) -> str:
    return f"--address={address}"


def until(happened: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_S)


def kinds_on_the_wire(server: Process, image: bytes, name: str = "vm") -> set[int]:
    """By somebody else's client: the pages that come as POISON. All others hold what the image has."""
    lost: set[int] = set()
    with grpc.insecure_channel(server.ready["data"]) as channel:
        for batch in PageServiceStub(channel).StreamPages(pb.StreamPagesRequest(image=name)):
            byte = 0
            for first, count, kind, _ in fours(batch):
                for page in range(first, first + count):
                    want = image[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
                    if kind == pb.RUN_KIND_POISON:
                        lost.add(page)
                    elif kind == pb.RUN_KIND_DATA:
                        assert batch.data[byte : byte + PAGE_BYTES] == want
                        byte += PAGE_BYTES
                    else:
                        assert kind == pb.RUN_KIND_ZERO and not any(want)
    return lost


def content_id(server: Process) -> int:
    with grpc.insecure_channel(server.ready["data"]) as channel:
        return int(PageServiceStub(channel).DescribeImage(pb.DescribeImageRequest(image="vm")).content_id)


def lost_in(guest: Guest, *words: object) -> set[int]:
    """The pages that raise SIGBUS in it; every other one is right."""
    before = len(guest.wrong_pages)
    report = guest.do(*words)
    assert set(report.kinds) <= {"lost"}, guest.errors_told
    return {page for page, _ in guest.wrong_pages[before:]}


# ------------------------------------------------------------------------------------------------- a bad disk


@pytest.fixture
def disk(folder: Path) -> Iterator[BadDisk]:
    image = SHAPE.make_image(folder / "image").read_bytes()
    try:
        made = BadDisk(image, folder)
    except NoBadDisk as why:
        pytest.skip(f"no bad disk: {why}")
    with made:
        yield made


def inspected(disk: BadDisk, *options: str) -> "subprocess.CompletedProcess[str]":
    arguments = [*disk.prefix, *command("pageserver", "inspect", *options), str(disk.path)]
    return subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def on(disk: BadDisk, folder: Path) -> Process:
    options = [f"--image=vm={disk.path}", f"--poison=vm={folder / 'vm.poison'}"]
    ports = ["--data-listen=127.0.0.1:0", "--control-listen=127.0.0.1:0"]
    start = [*disk.prefix, *command("pageserver"), "serve", *options, *ports]
    return Process(start, folder=folder, ready=True)


def test_a_bad_sector_is_lost_alone_and_for_ever(disk: BadDisk, folder: Path) -> None:
    image = (folder / "image").read_bytes()
    record = folder / "vm.poison"
    disk.bad = {3, 4}
    with on(disk, folder) as server:
        assert json.loads(record.read_text())["left_out"] == [[3, 2]]
        assert kinds_on_the_wire(server, image) == {3, 4}
        first_id = content_id(server)
        disk.bad |= {77}  # while it is served
        assert kinds_on_the_wire(server, image) == {3, 4, 77}
        until(lambda: json.loads(record.read_text())["runs"] == [[3, 2], [77, 1]], "77 is recorded")
        told = asked("pageserver", "list", "vm", at(server.ready["control"]), "--log")
        assert told["runs"] == [[3, 2], [77, 1]]
        assert [(entry["seq"], entry["page"]) for entry in told["entries"]] == [(1, 3), (2, 77)]
        assert server.end() == 0
    disk.bad = set()  # it reads again: too late
    with on(disk, folder) as server:
        assert content_id(server) == first_id
        assert kinds_on_the_wire(server, image) == {3, 4, 77}
        assert json.loads(record.read_text())["runs"] == [[3, 2], [77, 1]]
    disk.bad = {100}  # one that was readable: what it was called stays
    with on(disk, folder) as server:
        assert content_id(server) == first_id
        assert kinds_on_the_wire(server, image) == {3, 4, 77, 100}
    facts = json.loads(inspected(disk, "--json", f"--poison={record}").stdout)
    assert (facts["poisoned_pages"], facts["unreadable_pages"]) == (4, 1)
    assert int(facts["content_id"], 16) == first_id


@needs_userfaultfd
def test_a_guest_gets_a_bus_error_for_a_bad_sector(disk: BadDisk, folder: Path) -> None:
    with (
        on(disk, folder) as server,
        client(folder, server.ready["data"], "--no-background") as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        guest.ready()
        disk.bad = {8, 130, 131}
        assert lost_in(guest, "all") == disk.bad


def test_a_dead_disk_is_no_image(disk: BadDisk, folder: Path) -> None:
    """Of 9000 pages every other one is bad: that is more than a poison file is for."""
    (folder / "dead").mkdir()
    with BadDisk(bytes(9000 * PAGE_BYTES), folder / "dead") as dead:
        dead.bad = set(range(0, 9000, 2))
        done = inspected(dead)
    assert done.returncode == 65
    assert "Input/output error" in done.stderr


# -------------------------------------------------------------------------------- a restore, saved and served


@needs_userfaultfd
def test_a_poisoned_image_is_restored_saved_and_served_again(folder: Path) -> None:
    path = SHAPE.make_image(folder / "image")
    image = path.read_bytes()
    ram = folder / "guest.ram"
    with ExitStack() as stack:
        server = stack.enter_context(serve(folder, {"vm": path}))
        control = server.ready["control"]
        assert asked("pageserver", "add", "vm", "7+2", "100", at(control))["runs"] == [[7, 2], [100, 1]]
        options = ("--layout=0:1M+4G:1M", "--no-background")
        run = stack.enter_context(client(folder, server.ready["data"], *options))
        guest = stack.enter_context(Guest(SHAPE, handoff=run.handoff, folder=folder, memory=f"file:{ram}"))
        guest.ready()
        address = at(run.control_address())
        assert lost_in(guest, "touch", *range(20)) == {7, 8}
        # By number and by guest address; one of them the guest has, the other it has not touched yet.
        asked("faultclient", "add", "restore", "12", address)
        told = asked("faultclient", "add", "restore", "--guest-address=0x100001234", address)
        assert pages_of(told["runs"]) == {7, 8, 12, 257}
        assert lost_in(guest, "all") == {7, 8, 12, 100, 257}
        told = asked("faultclient", "list", "restore", address, "--log")
        assert pages_of(told["runs"]) == {7, 8, 12, 100, 257}
        assert sorted(entry["page"] for entry in told["entries"]) == [7, 8, 12, 100, 257]
        assert [entry["seq"] for entry in told["entries"]] == [1, 2, 3, 4, 5]
        assert [entry["page"] for entry in told["entries"] if entry["was_mapped"]] == [12]
        assert asked("faultclient", "list", "restore", "8+5", address)["runs"] == [[8, 1], [12, 1]]
        # One is given back as fresh memory.
        asked("faultclient", "clear", "restore", "12", address)
        before = len(guest.wrong_pages)
        guest.do("touch", 12)
        assert guest.wrong_pages[before:] == [(12, "zero")]
        saved = folder / "saved.ram"
        shutil.copyfile(ram, saved)
        asked("faultclient", "list", "restore", f"--save={saved}.poison", address)
        status = json.loads(finished("faultclient", "status", "--json", address).output)
        assert (status["pages_poisoned"], status["poison_seq"]) == (4, 6)
        assert "4 pages lost" in finished("faultclient", "status", address).output
    # The bytes have left the memory.
    again = saved.read_bytes()
    for page in (7, 8, 100, 257):
        assert not any(again[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
    lost = {7, 8, 100, 257}
    with (
        serve(folder, {"vm": saved}) as server,
        client(folder, server.ready["data"], "--no-background") as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        assert kinds_on_the_wire(server, again) == lost
        guest.ready()
        guest.do("all")
        assert {page for page, kind in guest.wrong_pages if kind == "lost"} == lost
        assert {page for page, kind in guest.wrong_pages if kind != "lost"} <= {12}
    record = json.loads(Path(f"{saved}.poison").read_text())
    assert record["content_id"] is not None and pages_of(record["runs"]) == lost
    assert image[7 * PAGE_BYTES : 8 * PAGE_BYTES] != bytes(PAGE_BYTES)


def test_poison_survives_a_restart_and_other_bytes_are_refused(folder: Path) -> None:
    path = SHAPE.make_image(folder / "image")
    with serve(folder, {"vm": path}) as server:
        asked("pageserver", "add", "vm", "5", at(server.ready["control"]))
        assert server.end() == 0
    with serve(folder, {"vm": path}) as server:
        assert kinds_on_the_wire(server, path.read_bytes()) == {5}
        told = asked("pageserver", "list", "vm", at(server.ready["control"]), "--log")
        assert [entry["page"] for entry in told["entries"]] == [5]
        assert server.end() == 0
    Shape(SHAPE.pages, seed=62).make_image(path)
    done = finished("pageserver", "serve", f"--image=vm={path}", "--data-listen=127.0.0.1:0",
                    "--control-listen=127.0.0.1:0")  # fmt: skip
    assert done.status == 65 and "one of them was replaced" in done.log
    Path(f"{path}.poison").write_text('{"format": "pageferry-poison-1", "pages": 512')
    done = finished("pageserver", "serve", f"--image=vm={path}", "--data-listen=127.0.0.1:0")
    assert done.status == 65 and "cannot be understood" in done.log


# -------------------------------------------------------------------------------------------- what is refused


def test_what_a_page_server_refuses(folder: Path) -> None:
    with serve(folder, {"vm": SHAPE.make_image(folder / "image")}) as server:
        control = at(server.ready["control"])
        for words, status, says in (
            (["add", "vm", "512"], 65, "page 512 is past the end of vm"),
            (["add", "other", "1"], 65, "no image 'other'"),
            (["list", "other"], 65, "no image 'other'"),
            (["add", "vm", "--guest-address=0x1000"], 71, "where the memory of vm lies in the guest"),
            (["add", "vm"], 2, "Name PAGES"),
            (["add", "vm", "x"], 2, "is no page"),
            (["add", "vm", "1+0"], 2, "is no page"),
            (["list", "vm", "--guest-address=here"], 2, "is no address"),
        ):
            code, said = refused("pageserver", *words, control)
            assert (code, says in said) == (status, True), said
        done = finished("pageserver", "poison", "add", "vm", "512", control)  # as a process, once
        assert (done.status, done.output) == (65, "")
        assert "past the end" in done.log and "[OUT_OF_IMAGE]" in done.log


@needs_userfaultfd
def test_what_a_fault_client_refuses(folder: Path) -> None:
    with (
        serve(folder, {"vm": SHAPE.make_image(folder / "image")}) as server,
        client(folder, server.ready["data"], "--no-background") as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        guest.ready()
        address = at(run.control_address())
        for words, status, says in (
            (["add", "restore", "512"], 65, "past the end"),
            (["clear", "restore", "500+20"], 65, "past the end"),
            (["add", "other", "1"], 65, "no session 'other'"),
            (["add", "restore", "--guest-address=4096"], 71, "add layout="),
        ):
            code, said = refused("faultclient", *words, address)
            assert (code, says in said) == (status, True), said


@needs_userfaultfd
def test_late_poison_needs_a_registration_that_was_kept(folder: Path) -> None:
    with serve(folder, {"vm": SHAPE.make_image(folder / "image")}) as server:
        options = ("--keep-registration",)
        with (
            client(folder, server.ready["data"], *options) as run,
            Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
        ):
            guest.ready()
            assert lost_in(guest, "all") == set()
            run.wait_log('"phase": "COMMITTED"')
            address = at(run.control_address())
            asked("faultclient", "add", "restore", "40", address)
            assert lost_in(guest, "touch", *range(38, 43)) == {40}
            asked("faultclient", "clear", "restore", "40", address)
            guest.close()  # until then it stays
            assert run.wait() == 0


# ----------------------------------------------------------------------------------------------------- a move


class Moving:
    """A process moves to another: the stand-in VMM at both ends, without any device state."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = folder
        self.ram = SHAPE.make_image(folder / "source.ram")
        ports = ["--control-listen=127.0.0.1:0"]
        source = [f"--vm=vm,handoff={folder}/out.sock,process", "--data-listen=127.0.0.1:0", *ports]
        source.append(f"--state-dir={folder}/source-state")
        target = [f"--vm=vm,handoff={folder}/in.sock,process", *ports, f"--state-dir={folder}/target-state"]
        self.server = stack.enter_context(
            Process(command("pageserver", "serve", *source), folder=folder, ready=True)
        )
        self.client = stack.enter_context(
            Process(command("faultclient", "serve", *target), folder=folder, ready=True)
        )
        environment = {
            "LD_PRELOAD": str(SHIM),
            "PAGEFERRY_SHIM_RAM": str(self.ram),
            "PAGEFERRY_SHIM_SOCKET": f"{folder}/out.sock",
            "PAGEFERRY_SHIM_ROLE": "track",
        }
        self.source = stack.enter_context(
            Guest(SHAPE, folder=folder, memory=f"file:{self.ram}", options=["--bare"], env=environment)
        )
        self.source.ready()
        self.target = stack.enter_context(Guest(SHAPE, folder=folder, handoff=folder / "in.sock"))
        self.at_source: Any = MigrationServiceStub(self._channel(stack, self.server))
        self.at_target: Any = FaultClientServiceStub(self._channel(stack, self.client))

    def _channel(self, stack: ExitStack, process: Process) -> grpc.Channel:
        return stack.enter_context(grpc.insecure_channel(process.ready["control"]))

    def start(self, token: bytes) -> None:
        name = migrations_pb2.CreateSessionRequest(
            session="move", image="vm", token_sha256=hashlib.sha256(token).digest()
        )
        self.at_source.CreateSession(name, timeout=PATIENCE_S)
        bearer = base64.urlsafe_b64encode(token).decode().rstrip("=")
        self.at_target.StartSession(
            faultclient_pb2.StartSessionRequest(
                session="move",
                image="vm",
                vm="vm",
                data_address=self.server.ready["data"],
                control_address=self.server.ready["control"],
                manual_switchover=True,
            ),
            metadata=(("authorization", f"Bearer {bearer}"),),
            timeout=PATIENCE_S,
        )

    def session(self, stub: Any) -> Any:
        return stub.GetSession(migrations_pb2.SessionName(session="move"), timeout=PATIENCE_S)

    def until_rounds(self, more: int) -> None:
        before = self.session(self.at_target).round
        until(lambda: self.session(self.at_target).round >= before + more, "more rounds")


@needs_userfaultfd
def test_pages_that_are_lost_while_a_guest_moves(folder: Path) -> None:
    """Before its first round, between two, and at the target itself, before the guest runs and after."""
    with ExitStack() as stack:
        moving = Moving(stack, folder)
        control, address = at(moving.server.ready["control"]), at(moving.client.ready["control"])
        asked("pageserver", "add", "vm", "3", control)
        moving.start(bytes(range(32)))
        moving.until_rounds(2)
        until(lambda: moving.session(moving.at_target).pages_settled == 512, "all is there")
        assert moving.session(moving.at_source).poison_seq == 1
        asked("pageserver", "add", "vm", "60+2", control)
        assert moving.session(moving.at_source).poison_seq == 2
        asked("faultclient", "add", "move", "200", address)
        moving.until_rounds(2)
        told = asked("faultclient", "list", "move", address, "--log")
        assert pages_of(told["runs"]) == {3, 60, 61, 200}
        assert sorted(entry["page"] for entry in told["entries"]) == [3, 60, 61, 200]
        moving.at_target.SwitchOver(migrations_pb2.SessionName(session="move"), timeout=PATIENCE_S)
        until(lambda: moving.session(moving.at_source).phase == Phase.RELEASED, "the guest is there")
        assert moving.session(moving.at_target).phase == Phase.COMMITTED
        code, said = refused("pageserver", "add", "vm", "9", control)
        assert (code, "no image 'vm' is served here" in said) == (65, True)
        moving.target.ready()
        assert lost_in(moving.target, "all") == {3, 60, 61, 200}
        asked("faultclient", "add", "move", "300", address)  # poison is there, so the registration is too
        assert lost_in(moving.target, "touch", 299, 300, 301) == {300}
        told = asked("faultclient", "list", "move", address, "--log")
        assert [entry["seq"] for entry in told["entries"]] == [1, 2, 3, 4, 5]
        gone = moving.session(moving.at_source)
        assert (gone.pages_poisoned, gone.poison_seq) == (4, 2)

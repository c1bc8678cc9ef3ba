# SPDX-License-Identifier: Apache-2.0
"""Who can stand at the hand-off socket. Each side starts its processes and says when it is ready.

All sides run as the scheduler likes, with the same freedom: no side is pinned that another is not.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.room import Process, Room

ROOT = Path(__file__).parent.parent
PROGRAMS = ROOT / "build" / "bench"
# The console scripts of the environment that runs this.
SCRIPTS = Path(sys.executable).parent
IMAGE = "bench"
START_WAIT_S = 60.0


def ready_at_once() -> None:
    """A floor serves as soon as it has the hand-off; a touch that comes earlier waits in the kernel."""


@dataclass(frozen=True)
class Running:
    """What one run started: its processes by role, and what to wait for before the first touch."""

    pids: dict[str, int]
    ready: Callable[[], None] = ready_at_once


@dataclass(frozen=True)
class Side:
    """`populate`: the program that faults fills its memory itself, so every page is current already."""

    name: str
    populate: bool
    start: Callable[[Room], Running]


# ------------------------------------------------------------------------------------------------- floors


def minor_floor(room: Room) -> Running:
    handler = room.start("bare_fault", PROGRAMS / "bare_fault", room.socket)
    return Running({"handler": handler.pid})


def remote_floor(room: Room) -> Running:
    server = room.start("raw_tcp", PROGRAMS / "raw_tcp", room.image)
    handler = room.start("remote_fault", PROGRAMS / "remote_fault", room.socket, "127.0.0.1", server.line())
    return Running({"handler": handler.pid, "server": server.pid})


# --------------------------------------------------------------------------------------------------- ours


def wait_for_file(process: Process, path: Path) -> dict[str, str]:
    """What a process of ours writes once it is up."""
    until = time.monotonic() + START_WAIT_S
    while not path.exists():
        if not process.running or time.monotonic() > until:
            raise process.failed(f"did not write {path.name}")
        time.sleep(0.02)
    ready: dict[str, str] = json.loads(path.read_text())
    return ready


def page_server(room: Room) -> tuple[Process, str]:
    """`pageserver serve` and the address of its data port."""
    ready = room.path / "server.json"
    listen = ("--data-listen", "127.0.0.1:0", "--control-listen", f"unix:{room.path / 'server.sock'}")
    image = ("--image", f"{IMAGE}={room.image}")
    server = room.start("pageserver", SCRIPTS / "pageserver", "serve", *image, *listen, "--ready-file", ready)
    return server, wait_for_file(server, ready)["data"]


def fault_client(room: Room, data_address: str, server: Process) -> Running:
    """`faultclient run`, fetching nothing that nobody waits for.

    The hand-off is served at once; the run begins when the imports of the control port are over too.
    """
    ready = room.path / "client.json"
    listen = ("--socket", room.socket, "--control-listen", f"unix:{room.path / 'client.sock'}")
    source = ("--data-address", data_address, "--image", IMAGE, "--no-background", "--ready-file", ready)
    handler = room.start("faultclient", SCRIPTS / "faultclient", "run", *listen, *source)
    pids = {"handler": handler.pid, "server": server.pid}
    return Running(pids, lambda: ignore(wait_for_file(handler, ready)))


def ignore(_: object) -> None:
    """What is waited for, not what it says."""


def remote_ours(room: Room) -> Running:
    server, data_address = page_server(room)
    return fault_client(room, data_address, server)


def minor_ours(room: Room) -> Running:
    """All pages held and none mapped: see held.py. The page server is idle once they are here."""
    _, data_address = page_server(room)
    handler = room.start("held", sys.executable, "-m", "bench.held", room.socket, IMAGE, data_address)
    handler.line()  # listening
    return Running({"handler": handler.pid}, lambda: ignore(handler.line()))


def remote_peer(room: Room) -> Running:
    """Our fault client, and a page server written with grpcio."""
    server = room.start("peer", sys.executable, "-m", "bench.peer.server", room.image, "--name", IMAGE)
    return fault_client(room, f"127.0.0.1:{server.line()}", server)


MINOR_FLOOR = Side("minor floor", True, minor_floor)
MINOR_OURS = Side("minor ours", False, minor_ours)
REMOTE_FLOOR = Side("remote floor", False, remote_floor)
REMOTE_OURS = Side("remote ours", False, remote_ours)
REMOTE_PEER = Side("remote grpcio server", False, remote_peer)
SIDES = (MINOR_FLOOR, MINOR_OURS, REMOTE_FLOOR, REMOTE_OURS, REMOTE_PEER)

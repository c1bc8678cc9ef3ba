# SPDX-License-Identifier: Apache-2.0
"""One run of one side, timed or counted."""

import json
from collections.abc import Callable
from pathlib import Path

from bench.room import Room
from bench.sides import PROGRAMS, Side
from bench.syscalls import Counter

RUN_WAIT_S = 120.0
COUNTED_TOUCHES = 2000

Figures = dict[str, float]  # as the toucher prints them
Calls = dict[str, dict[str, float]]  # role of the process -> name of the system call -> calls a page


def timed(image: Path, mib: int, side: Side, touches: int, warm_up: int, seed: int) -> Figures:
    with Room(image, mib) as room:
        return _touch(room, side, touches, warm_up, seed, lambda pids: None)


def counted(image: Path, mib: int, side: Side) -> Calls:
    """A short run under strace, which makes every call slower: its times are thrown away."""
    counters: dict[str, Counter] = {}

    def attach(pids: dict[str, int]) -> None:
        counters.update({role: Counter(room, role, pid) for role, pid in pids.items()})

    with Room(image, mib) as room:
        _touch(room, side, COUNTED_TOUCHES, 0, 1, attach)
        return {role: counter.stop(COUNTED_TOUCHES) for role, counter in counters.items()}


def _touch(
    room: Room, side: Side, touches: int, warm_up: int, seed: int, before: Callable[[dict[str, int]], None]
) -> Figures:
    running = side.start(room)
    arguments: list[str | Path] = [PROGRAMS / "toucher", "--socket", room.socket, "--mib", str(room.mib)]
    arguments += ["--wait", "--touches", str(touches), "--warm-up", str(warm_up), "--seed", str(seed)]
    if side.populate:
        arguments.append("--populate")
    toucher = room.start("toucher", *arguments)
    toucher.line()  # handed over
    running.ready()
    before(running.pids)
    toucher.tell("go")
    figures: Figures = json.loads(toucher.line(RUN_WAIT_S))
    if toucher.wait() != 0:
        raise toucher.failed(f"found that this run is no result: {figures}")
    return figures

# SPDX-License-Identifier: Apache-2.0
"""A cap on bandwidth holds over all of a move: rounds, bulk, and what a guest waits for.

The interface of the target's host is asked, not us. A guest that writes flat out waits for more pages than
the cap allows, and is not held up: bulk stands still until the average is right again. So the average of the
whole move is what is looked at.

The interface counts packets, and so do we. But between two veth a packet may be a merged one of 64 KiB with
one header, which no wire carries; so the source's end is told to send as a card does. (Left as it is, the
counter says 4 % less.)
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from tests.support.move_ours import Ours
from tests.support.move_room import Room, look_at_every_page
from tests.support.netns import INTERFACE, Host, NamespaceError, host_pair, run
from tests.support.ramfile import run_folder
from tests.support.shape import GuestShape
from tests.support.witness import interface_counters

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")

LINK_MBIT: Final = 1000
CAP_BYTES_PER_S: Final = 16_000_000  # little: a machine that is busy with others can do it too
SHAPE: Final = GuestShape(workload_mib=96, hot_mib=64)
PRECOPY_S: Final = 5.0
WINDOW_S: Final = 10.0
POSTCOPY_S: Final = 2.0  # of it, at least, after the guest has moved
LOOK_S: Final = 0.02
EDGE_BYTES: Final = 2_000_000  # before all is under way, and when the last pages come


@dataclass(frozen=True)
class Look:
    at_s: float
    bytes: int  # that the interface has received, ever


@contextmanager
def looks_at(host: Host) -> Iterator[list[Look]]:
    looks: list[Look] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            looks.append(Look(time.monotonic(), interface_counters(host.pid, INTERFACE).rx_bytes))

    thread = threading.Thread(target=look, name="looks", daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join()


def while_it_flowed(looks: list[Look]) -> list[Look]:
    first, last = looks[0].bytes + EDGE_BYTES, looks[-1].bytes - EDGE_BYTES
    return [look for look in looks if first <= look.bytes <= last]


def rate(looks: list[Look]) -> float:
    return (looks[-1].bytes - looks[0].bytes) / (looks[-1].at_s - looks[0].at_s)


def as_a_card_sends(host: Host) -> None:
    run([*host.prefix, "ip", "link", "set", "dev", INTERFACE, "gso_max_segs", "1"])


def test_a_cap_holds_over_rounds_bulk_and_faults() -> None:
    side = Ours(precopy_s=PRECOPY_S, options=[f"--bandwidth={CAP_BYTES_PER_S}"])
    try:
        with (
            run_folder() as folder,
            host_pair(rate_mbit=LINK_MBIT) as hosts,
            Room(SHAPE, None, hosts, folder / "move") as room,
        ):
            as_a_card_sends(hosts.source)
            side.prepare(room)
            with looks_at(hosts.destination) as looks:
                started_ns = side.start()
                side.wait_all_here()
            room.target.console.wait_beats(1)
            look_at_every_page(room)
            facts = side.finish()
    except NamespaceError as error:
        pytest.skip(f"no namespaces: {error}")
    assert room.target.console.beats[-1].errors == 0
    assert facts["faults"] and facts["rounds"]
    flow = while_it_flowed(looks)
    assert flow[-1].at_s - flow[0].at_s >= WINDOW_S
    assert flow[-1].at_s - started_ns / 1e9 - PRECOPY_S >= POSTCOPY_S
    assert 0.95 <= rate(flow) / CAP_BYTES_PER_S <= 1.05

# SPDX-License-Identifier: Apache-2.0
"""The guest's serial console: heartbeats and errors of the workload, each with the host's time of arrival.

A thread reads whole pieces as they come. A line that was cut when the guest was stopped has its first half on
the source's console and the rest on the destination's: the source's `tail` is given to the destination's
reader, which joins them. Where the guest moves while both are read, the tail is known only later and the
halves are joined then: `head` is the first line as it came.
"""

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

READ_BYTES = 65536
BEAT = re.compile(
    r"HB (?P<number>\d+) verified=(?P<verified>\d+) rewritten=(?P<rewritten>\d+) errors=(?P<errors>\d+)"
    r" epoch=(?P<epoch>\d+) distinct=(?P<distinct>\d+) ms=(?P<guest_ms>\d+)"
)


class ConsoleError(Exception):
    """What was waited for did not come; the text holds the end of the console."""


@dataclass(frozen=True)
class Heartbeat:
    number: int
    verified: int  # pages looked at, since the workload began
    rewritten: int  # pages written anew
    errors: int  # wrong lines, counted each time they are seen
    epoch: int
    distinct: int  # different pages looked at in this epoch
    guest_ms: int
    arrived_ns: int  # the host's time.monotonic_ns()


def heartbeat(line: str, arrived_ns: int) -> Heartbeat | None:
    beat = BEAT.fullmatch(line)
    if beat is None:
        return None
    figures = {name: int(figure) for name, figure in beat.groupdict().items()}
    return Heartbeat(**figures, arrived_ns=arrived_ns)


class Console:
    """Reads `fd` until its end. Everything public may be read from any thread; lists only grow."""

    def __init__(self, fd: int, tail: str = "", ended: Callable[[], str] = lambda: "") -> None:
        """`tail`: the cut line of the guest's former console. `ended` says why the console ended, for
        messages.
        """
        self.beats: list[Heartbeat] = []
        self.errors: list[str] = []  # the workload's ERR lines
        self.other: list[str] = []  # what the kernel or init says, and heartbeats that cannot be read
        self.tail = tail
        self.head: tuple[str, int] | None = None  # the first line of all, and when it was whole
        self.closed = False
        self._fd = fd
        self._ended = ended
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="guest-console", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._fd, READ_BYTES)
            except OSError:  # a terminal whose other side is gone says so by EIO: the end like any other
                piece = b""
            arrived_ns = time.monotonic_ns()
            with self._news:
                *lines, self.tail = (self.tail + piece.decode("ascii", "replace")).split("\n")
                for line in lines:
                    self._take(line.rstrip("\r"), arrived_ns)
                self.closed = not piece
                self._news.notify_all()
            if not piece:
                return

    def _take(self, line: str, arrived_ns: int) -> None:
        self.head = self.head or (line, arrived_ns)
        beat = heartbeat(line, arrived_ns)
        if beat:
            self.beats.append(beat)
        elif line.startswith("ERR "):
            self.errors.append(line)
        else:
            self.other.append(line)

    def wait(self, happened: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Until `happened()`, which is asked whenever something arrives; ConsoleError when it cannot any
        more.
        """
        with self._news:
            self._news.wait_for(lambda: happened() or self.closed, timeout_s)
            if not happened():
                why = "the console has ended" if self.closed else f"not within {timeout_s:g} s"
                last = [f"HB {self.beats[-1].number}"] if self.beats else []
                said = "\n".join([*self.other[-15:], *self.errors[-5:], *last, self.tail])
                raise ConsoleError(f"{what}: {why}\n{said}\n{self._ended() if self.closed else ''}".rstrip())

    def wait_beats(self, count: int, timeout_s: float = 60) -> list[Heartbeat]:
        """`count` heartbeats more than there are now, and these."""
        have = len(self.beats)
        self.wait(lambda: len(self.beats) >= have + count, f"{count} more heartbeats", timeout_s)
        return self.beats[have:]

    def wait_beat(self, right: Callable[[Heartbeat], bool], what: str, timeout_s: float = 60) -> Heartbeat:
        """The first heartbeat from now on that is `right`."""
        at = len(self.beats)

        def found() -> bool:
            nonlocal at
            while at < len(self.beats) and not right(self.beats[at]):
                at += 1
            return at < len(self.beats)

        self.wait(found, what, timeout_s)
        return self.beats[at]

    def finish(self) -> None:
        """After the guest's end: everything it wrote has been taken."""
        self._thread.join()


def missing_beats(beats: list[Heartbeat], after: int) -> list[int]:
    """Numbers that are out of order or absent, where the first should be `after` + 1; empty: an unbroken
    row.
    """
    return [expected for expected, beat in enumerate(beats, start=after + 1) if beat.number != expected]

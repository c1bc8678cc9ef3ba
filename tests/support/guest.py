# SPDX-License-Identifier: Apache-2.0
"""The stand-in VMM (guest.c) as a test drives it: orders in, one JSON line out for each.

shape = Shape(pages=(4096,))
image = shape.make_image(folder / "image")
with Guest(shape, handoff=client_socket, folder=folder) as guest:
    guest.order("all")
    assert guest.wait().errors == 0
"""

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.build import guest_program
from tests.support.processes import PATIENCE_S, POLL_S, free_name

PAGE_BYTES: Final = 4096
KINDS: Final = (
    "stale", "torn", "misplaced", "damaged", "zero", "lost_write", "not_zero", "removed_back", "lost",
    "undead",
)  # fmt: skip


class GuestError(Exception):
    """The guest ended, or did not answer; the text holds what it said last."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What maker and guest agree on without speaking: which pages of the image hold data, and what."""

    pages: tuple[int, ...] = (4096,)  # one a region
    seed: int = 1
    data_percent: int = 75

    @property
    def page_count(self) -> int:
        return sum(self.pages)

    def options(self) -> list[str]:
        regions = ",".join(map(str, self.pages))
        return [f"--pages={regions}", f"--seed={self.seed}", f"--data-percent={self.data_percent}"]

    def make_image(self, path: Path, *, n: int = 1) -> Path:
        """`n` 0: the pages as they were before; the guest takes them for stale."""
        subprocess.run([guest_program(), "image", path, *self.options(), f"--n={n}"], check=True)
        return path

    def data_pages(self, image: Path) -> list[int]:
        """Those of its pages that are not all zeros."""
        zeros = bytes(PAGE_BYTES)
        with image.open("rb") as file:
            return [page for page in range(self.page_count) if file.read(PAGE_BYTES) != zeros]


@dataclass(frozen=True, slots=True)
class Report:
    """The guest's counts. `kinds` has those kinds of wrong pages that it has seen."""

    busy: bool
    looks: int
    inconclusive: int
    rewrites: int
    distinct: int
    given_away: int
    bus: int  # SIGBUS of a page that is lost, as it should be
    errors: int
    kinds: Mapping[str, int]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        return cls(
            busy=answer["busy"],
            looks=answer["looks"],
            inconclusive=answer["inconclusive"],
            rewrites=answer["rewrites"],
            distinct=answer["distinct"],
            given_away=answer["given_away"],
            bus=answer["bus"],
            errors=answer["errors"],
            kinds={kind: answer[kind] for kind in KINDS if answer[kind]},
        )


class Guest:
    """Running from its construction on; ready() is waited for apart, for until then it may have faulted."""

    def __init__(
        self,
        shape: Shape,
        *,
        folder: Path,
        handoff: Path | None = None,
        memory: str = "memfd",
        threads: int = 2,
        options: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._err = free_name(folder, "guest").with_suffix(".err")
        command = [str(guest_program()), "run", *shape.options()]
        command += [f"--memory={memory}", f"--threads={threads}"]
        command += [f"--handoff={handoff}"] if handoff is not None else []
        free_name(folder, "guest").touch()
        with self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                bufsize=0,
                env={**os.environ, **(env or {})},
            )
        self.pid = self._process.pid
        self._unread = b""

    # ------------------------------------------------------------------------------------------------- orders

    def hear(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Its next line."""
        out = self._process.stdout
        assert out is not None
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._unread:
            readable, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(out.fileno(), 65536) if readable else b""
            if not more:
                why = "says nothing" if not readable else f"has ended with {self._process.wait()}"
                raise GuestError(f"the guest {why}\n{self.errors_told}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def say(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())

    def order(self, *words: object, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        self.say(*words)
        return self.hear(patience_s)

    def ready(self) -> Self:
        """Once the threads are there and the VMM's own early touches are done."""
        assert self.hear()["ready"]
        return self

    def report(self) -> Report:
        return Report.of(self.order("report"))

    def wait(self) -> Report:
        """Until the job is done."""
        return Report.of(self.order("wait", patience_s=3 * PATIENCE_S))

    def do(self, *words: object) -> Report:
        """A job, to its end."""
        self.order(*words)
        return self.wait()

    def wait_looks(self, looks: int) -> Report:
        """Until it has looked at so many pages; the job may still go on."""
        deadline = time.monotonic() + PATIENCE_S
        while (report := self.report()).looks < looks:
            if not report.busy or time.monotonic() > deadline:
                raise GuestError(f"the guest has stopped at {report.looks} of {looks} looks")
            time.sleep(POLL_S)
        return report

    @property
    def errors_told(self) -> str:
        """The first wrong pages, and what else it had to say."""
        return self._err.read_text(errors="replace")

    @property
    def wrong_pages(self) -> list[tuple[int, str]]:
        found = re.findall(r"ERR page=(\d+) kind=(\w+)", self.errors_told)
        return [(int(page), kind) for page, kind in found]

    # ------------------------------------------------------------------------------------------------ its end

    def kick(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_end(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()  # a thread that waits for its page needs no more
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.errors_told:
            error.add_note(f"{self._err.name}:\n{self.errors_told[-4000:]}")
        self.close()

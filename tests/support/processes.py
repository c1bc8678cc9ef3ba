# SPDX-License-Identifier: Apache-2.0
"""Console scripts of ours as processes of a test: started, waited for (ready file), read, ended by pid.

    with script("pageserver", "serve", ..., folder=tmp_path, ready=True) as server:
        grpc.insecure_channel(server.ready["data"])
        assert server.end() == 0

A script that is to end by itself (a bad option, `inspect`) is `finished("pageserver", "inspect", path)`.
What a process writes goes to files, so that nothing here needs a thread; a failing wait shows their end.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

# Long enough for a loaded machine: a wait that ends by it is a failure, never a measurement.
PATIENCE_S = 30.0
POLL_S = 0.01
SHOWN_BYTES = 4000


class ProcessError(Exception):
    """What was waited for did not come; the text holds the end of the process's output."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without settings of our programs that somebody's shell may hold."""
    prefixes = ("PAGEFERRY_", "FAULTCLIENT_", "PAGESERVER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, **(extra or {})}


def command(name: str, *arguments: object) -> list[str]:
    """A console script as it is installed beside this interpreter."""
    return [str(Path(sys.executable).with_name(name)), *map(str, arguments)]


def free_name(folder: Path, name: str) -> Path:
    """NAME-0.out, or the next number: a test may start a script several times."""
    number = 0
    while (path := folder / f"{name}-{number}.out").exists():
        number += 1
    return path


class Process:
    """Running from its construction on. `folder` takes what it writes: NAME-N.out, .err and .ready."""

    def __init__(
        self,
        arguments: list[str],
        *,
        folder: Path,
        ready: bool = False,
        env: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """`ready`: gives it --ready-file, and waits until it is written."""
        self._out = free_name(folder, Path(arguments[0]).name)
        self._err = self._out.with_suffix(".err")
        self._ready_file = self._out.with_suffix(".ready")
        self.ready: dict[str, Any] = {}
        if ready:
            arguments = [*arguments, f"--ready-file={self._ready_file}"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment(env),
                pass_fds=pass_fds,
            )
        self.pid = self._process.pid
        if ready:
            self.wait_ready()

    # ------------------------------------------------------------------------------------------- what it says

    @property
    def output(self) -> str:
        """Its standard output so far."""
        return self._out.read_text(errors="replace")

    @property
    def log(self) -> str:
        """Its standard error so far."""
        return self._err.read_text(errors="replace")

    def wait_until(self, happened: Callable[[], bool], what: str) -> None:
        """Until `happened()`. ProcessError when the process ends before, or patience does."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            ended = self._process.poll()
            if (ended is not None and not happened()) or time.monotonic() > deadline:
                why = f"not within {PATIENCE_S:g} s" if ended is None else f"it has ended with {ended}"
                raise ProcessError(f"{what}: {why}\n{self.output[-SHOWN_BYTES:]}\n{self.log[-SHOWN_BYTES:]}")
            time.sleep(POLL_S)

    def wait_log(self, fragment: str) -> None:
        """Until the log holds it."""
        self.wait_until(lambda: fragment in self.log, f"{fragment!r} in the log")

    def wait_ready(self) -> dict[str, Any]:
        """What the ready file says, once it is there."""
        self.wait_until(self._ready_file.exists, "the ready file")
        self.ready = json.loads(self._ready_file.read_text())
        return self.ready

    # ------------------------------------------------------------------------------------------------ its end

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kick(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"it does not end\n{self.log[-SHOWN_BYTES:]}") from None

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.kick(number)
        return self.wait()

    def close(self) -> None:
        """Whatever happened, it does not outlive the test."""
        if self.running:
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None:
            error.add_note(f"{self._err.name}:\n{self.log[-SHOWN_BYTES:]}")


def script(name: str, *arguments: object, folder: Path, ready: bool = False, **options: Any) -> Process:
    """A console script of ours, started."""
    return Process(command(name, *arguments), folder=folder, ready=ready, **options)


@dataclass(frozen=True)
class Finished:
    status: int
    output: str
    log: str


def finished(
    name: str, *arguments: object, env: Mapping[str, str] | None = None, pass_fds: tuple[int, ...] = ()
) -> Finished:
    """A console script of ours, run to its end."""
    with (
        tempfile.TemporaryDirectory() as folder,
        script(name, *arguments, folder=Path(folder), env=env, pass_fds=pass_fds) as process,
    ):
        return Finished(process.wait(), process.output, process.log)


# ------------------------------------------------------------------------------------------------------ leaks


@dataclass(frozen=True)
class Census:
    """What a process holds: what its descriptors lead to, and how many threads it has."""

    fds: tuple[str, ...]
    threads: int


def census(pid: int) -> Census:
    leads: list[str] = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            leads.append(str(link.readlink()))
        except FileNotFoundError:  # the one that lists the folder, in our own process
            continue
    return Census(tuple(sorted(leads)), len(list(Path(f"/proc/{pid}/task").iterdir())))


def wait_no_more(pid: int, before: Census) -> None:
    """Until the process holds nothing that it did not hold before: a connection takes a moment to close."""
    deadline = time.monotonic() + PATIENCE_S
    while (more := Counter((now := census(pid)).fds) - Counter(before.fds)) or now.threads > before.threads:
        held = f"{sorted(more.elements())}, {before.threads} threads before, {now.threads} now"
        assert time.monotonic() < deadline, f"it holds more than before: {held}"
        time.sleep(POLL_S)


@contextmanager
def unchanged(pid: int | None = None) -> Iterator[None]:
    """A process (ours without `pid`) holds no more descriptors and threads after it than before."""
    pid = os.getpid() if pid is None else pid
    before = census(pid)
    yield
    gc.collect()
    wait_no_more(pid, before)


@pytest.fixture
def leaks_nothing() -> Iterator[None]:
    """The test's own process, fixtures that were set up before it aside."""
    with unchanged():
        yield

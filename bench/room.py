# SPDX-License-Identifier: Apache-2.0
"""The place of one run: a temporary folder, and processes that do not outlive it."""

import os
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

LINE_WAIT_S = 60.0
STOP_WAIT_S = 15.0


class RunFailed(Exception):
    """A process ended badly, or did not say what it had to; the message has the end of what it wrote."""


class Process:
    """A child whose stdout is read line by line and whose stderr goes to a file in the room."""

    def __init__(self, name: str, arguments: list[str], errors: Path) -> None:
        self.name = name
        self._errors = errors
        self._pending = b""
        with errors.open("wb") as file:
            self._child = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, bufsize=0
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def line(self, wait_s: float = LINE_WAIT_S) -> str:
        """The next line of its stdout."""
        assert self._child.stdout is not None
        until = time.monotonic() + wait_s
        while b"\n" not in self._pending:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._child.stdout], [], [], left)[0]:
                raise self.failed(f"said nothing for {wait_s:g} s")
            read = os.read(self._child.stdout.fileno(), 65536)
            if not read:
                raise self.failed("ended without the line that was expected")
            self._pending += read
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode()

    def tell(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line.encode() + b"\n")

    def wait(self, wait_s: float = STOP_WAIT_S) -> int:
        try:
            return self._child.wait(wait_s)
        except subprocess.TimeoutExpired as late:
            raise self.failed(f"did not end within {wait_s:g} s") from late

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends it: politely, then not."""
        if self._child.poll() is None:
            self._child.send_signal(number)
            try:
                self._child.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    def failed(self, what: str) -> RunFailed:
        code = self._child.poll()
        state = "still runs" if code is None else f"exit code {code}"
        return RunFailed(f"{self.name} {what} ({state})\n" + "\n".join(self.errors().splitlines()[-20:]))


class Room:
    """Where the processes of one run meet; leaving it ends them, the last started first."""

    def __init__(self, image: Path, mib: int) -> None:
        self.image = image
        self.mib = mib
        self._folder = tempfile.TemporaryDirectory(prefix="pageferry-bench-")
        self.path = Path(self._folder.name)
        self.socket = self.path / "handoff.sock"
        self._processes: list[Process] = []

    def start(self, name: str, *arguments: str | Path) -> Process:
        errors = self.path / f"{len(self._processes)}-{name}.err"
        process = Process(name, [str(argument) for argument in arguments], errors)
        self._processes.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.stop()
        self._folder.cleanup()

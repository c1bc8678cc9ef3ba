# SPDX-License-Identifier: Apache-2.0
"""A command at a terminal of its own, and what stands on its screen: as lines, and as a page for a browser.

with Terminal(["faultclient", "top"], columns=100, lines=30) as top:
    top.wait_for("PRECOPY")
    top.press(CTRL_C)
    assert top.wait() == 0
"""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyte

from tests.support.processes import PATIENCE_S, ProcessError, environment

CTRL_C: Final = "\x03"
POLL_S: Final = 0.02
COLOURS: Final = {
    "default": "#d7dbe0",
    "black": "#20242c",
    "red": "#f0716b",
    "green": "#6ccb7f",
    "brown": "#e0b455",  # as pyte calls yellow
    "blue": "#6ea0fb",
    "magenta": "#b58df5",
    "cyan": "#56c7c0",
    "white": "#d7dbe0",
    "brightblack": "#7d8694",
}
STYLE: Final = """
body { margin: 0; background: #14171d; }
pre { margin: 0; padding: 14px 18px; color: #d7dbe0; font: 15px/1.3 "DejaVu Sans Mono", monospace; }
.b { font-weight: bold; } .d { opacity: 0.55; }
"""


class Terminal:
    """Running from its construction on; killed with all that it started on leaving the context."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        columns: int = 100,
        lines: int = 40,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        try:
            self._process = subprocess.Popen(
                ["setsid", "--ctty", *arguments],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=environment({"TERM": "xterm-256color", "COLORTERM": "", **(env or {})}),
                cwd=folder,
            )
        finally:
            os.close(slave)
        self._thread = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._master, 1 << 16)
            except OSError:  # EIO: nobody has the other side open any more
                return
            if not piece:
                return
            with self._lock:
                self._stream.feed(piece)

    # ----------------------------------------------------------------------------------------- what is there

    @property
    def lines(self) -> list[str]:
        """Of the screen, without blanks at their ends."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    @property
    def cursor_hidden(self) -> bool:
        with self._lock:
            return bool(self._screen.cursor.hidden)

    def wait_until(self, happened: Callable[[str], object], what: str) -> str:
        """The screen on which it has. ProcessError: the command has ended, or patience has, before."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not happened(text := self.text):
            ended = self._process.poll() is not None
            if ended:
                self._thread.join(1.0)
            if (ended and not happened(self.text)) or time.monotonic() > deadline_s:
                raise ProcessError(f"{what}: not seen at the terminal; the end of it:\n{self.text}")
            time.sleep(POLL_S)
        return text

    def wait_for(self, pattern: str) -> str:
        """A regular expression."""
        return self.wait_until(lambda text: re.search(pattern, text), pattern)

    def as_html(self) -> str:
        """The screen as a page, in its colours."""
        with self._lock:
            rows = [self._html_row(number) for number in range(self._screen.lines)]
        while rows and not rows[-1].strip():
            rows.pop()
        return (
            f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style><pre>' + "\n".join(rows) + "</pre>"
        )

    def _html_row(self, number: int) -> str:
        """Neighbours that look alike in one element. (Bytes that nobody wrote are blanks.)"""
        pieces: list[tuple[str, str]] = []
        row = self._screen.buffer[number]
        for column in range(self._screen.columns):
            cell = row[column]
            colour = COLOURS.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else COLOURS["default"])
            look = f'style="color:{colour}"' + (' class="b"' if cell.bold else "")
            if pieces and pieces[-1][0] == look:
                pieces[-1] = (look, pieces[-1][1] + cell.data)
            else:
                pieces.append((look, cell.data))
        return "".join(
            f"<span {look}>{escape(text)}</span>" if text.strip() else text for look, text in pieces
        )

    # ------------------------------------------------------------------------------------------- what is done

    def press(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self) -> int:
        """Its exit status, once it has ended and all that it wrote is on the screen."""
        try:
            status = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"it does not end\n{self.text}") from None
        self._thread.join(PATIENCE_S)
        return status

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)  # its session's, which it leads
        self._process.wait()
        self._thread.join(1.0)
        os.close(self._master)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"at the terminal:\n{self.text}")
        self.close()

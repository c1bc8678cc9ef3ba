# SPDX-License-Identifier: Apache-2.0
"""The walk-through of docs/migrate.md, on one machine, by its own commands: each block of it in a terminal.

The commands name default ports, /run and /dev/shm, so all of it happens in namespaces of its own, and in a
folder from which the clone looks as it does from its root.

    with Walk(folder, rate_mbit=300) as walk:
        walk.begin()
        with walk.terminal("migrate") as migrate:
            assert migrate.wait() == 0
"""

import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.initrd import ROOT, guest_image
from tests.support.processes import PATIENCE_S, POLL_S, ProcessError, environment
from tests.support.terminal import Terminal

DOC: Final = ROOT / "docs" / "migrate.md"
BLOCK: Final = re.compile(r"^<!-- walk: (.+?) -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOLD: Final = """
mount -t tmpfs none /run && mount -t tmpfs none /dev/shm && ip link set lo up || exit 1
tc qdisc replace dev lo root tbf rate "$1"mbit burst 256k latency 50ms || exit 1
echo held
exec cat
"""


def blocks() -> dict[str, str]:
    """By their names, as somebody copies them."""
    return dict(BLOCK.findall(DOC.read_text()))


class Program:
    """A block that runs for long, in a terminal that nobody looks at; ended with all that it has started."""

    def __init__(self, arguments: list[str], log: Path, folder: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(),
                cwd=folder,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Walk:
    """One guest on its way; all that runs ends with the context."""

    def __init__(self, folder: Path, *, rate_mbit: int) -> None:
        self.folder = folder
        self.programs: dict[str, Program] = {}
        self._blocks = blocks()
        self._rate_mbit = rate_mbit
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        guest_image()  # "once"; the native build is there already
        for name in ("native", "build", ".venv"):
            (self.folder / name).symlink_to(ROOT / name)
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", HOLD, "hold", str(self._rate_mbit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stack.callback(holder.wait)
        self._stack.callback(holder.kill)
        assert holder.stdout is not None and holder.stdin is not None
        self._stack.callback(holder.stdout.close)
        self._stack.callback(holder.stdin.close)
        if holder.stdout.readline() != b"held\n":
            raise ProcessError("no private namespaces: root, util-linux and iproute2 are needed")
        self._pid = holder.pid
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, program in self.programs.items():
            program.close()
            if error is not None:
                error.add_note(f"{name}:\n{program.output[-3000:]}")
        self._stack.close()

    def arguments(self, name: str, more: str = "") -> list[str]:
        """A terminal of its own, in which both blocks are pasted."""
        script = f"{self._blocks['every terminal']}\n{self._blocks[name].rstrip()}{more}"
        here = f"--wdns={self.folder}"
        inside = ["nsenter", f"--target={self._pid}", "--net", "--mount", "--root", here, "--"]
        return [*inside, "bash", "-c", script]

    def start(self, name: str) -> Program:
        number = sum(known.split("-")[0] == name for known in self.programs)
        log = self.folder / f"{name.replace(' ', '-')}-{number}.log"
        program = Program(self.arguments(name), log, self.folder)
        self.programs[f"{name}-{number}"] = program
        return program

    def terminal(self, name: str, more: str = "", *, columns: int = 100, lines: int = 40) -> Terminal:
        """One that is looked at; `more` options of its command."""
        return Terminal(self.arguments(name, more), columns=columns, lines=lines, folder=self.folder)

    def run(self, command: str, *, columns: int = 100, lines: int = 40) -> Terminal:
        """A command that the page does not have."""
        self._blocks["-"] = command
        return self.terminal("-", columns=columns, lines=lines)

    def begin(self) -> None:
        """All but the move. The guest's workload runs, the target waits."""
        self.start("page server")
        self.start("fault client")
        self.wait("/run/source.sock", "/run/target.sock")
        source = self.start("source")
        self.start("target")
        wait_until(lambda: "HB " in source.output or not source.running, "the guest's first heartbeat")
        self.wait("/run/target.qmp")

    def wait(self, *paths: str) -> None:
        """Until these are there, inside."""
        root = Path(f"/proc/{self._pid}/root")
        wait_until(lambda: all((root / path.lstrip("/")).exists() for path in paths), " ".join(paths))


def wait_until(happened: object, what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    assert callable(happened)
    while not happened():
        if time.monotonic() > deadline_s:
            raise ProcessError(f"{what}: not within {PATIENCE_S:g} s")
        time.sleep(POLL_S)

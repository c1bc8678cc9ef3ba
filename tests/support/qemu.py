# SPDX-License-Identifier: Apache-2.0
"""An unmodified QEMU under TCG with the real guest in it: boot, save to an image and a device state, restore.

The guest's RAM is one file on tmpfs, mapped shared. Saving is `stop` and a migration of everything but that
file (x-ignore-shared) to a socket held here; then the file is copied with its holes. Restoring is the
reverse, on a RAM file with the bytes in it or, with a shim and a fault client, on an empty one:

    with run_folder() as folder:
        with Qemu(shape, folder / "source.ram", folder / "source") as source:
            source.console.wait_beats(20)
            saved = source.save(folder / "guest.image")
        with Qemu(shape, folder / "guest.ram", folder / "guest", restoring=saved, environment=...) as guest:
            guest.load(saved.state)
            guest.resume()
            guest.console.wait_beats(20)

A QEMU dies with the thread that started it (PR_SET_PDEATHSIG) and is never asked to quit: one whose pages do
not come hangs in a fault for ever, and only SIGKILL ends that.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.console import Console
from tests.support.qmp import Qmp, QmpError
from tests.support.ramfile import COPY_BYTES, copy_sparse
from tests.support.shape import GuestShape, SavedGuest, plugged_file, qemu_options

STATE_BYTES_MAX = 2 << 20  # a device state is 0.3 MB at most; more means that RAM went into it
DEFAULT_BINARY = "qemu-system-x86_64"


class QemuError(Exception):
    """QEMU ended, refused or did not come to the end of something; the text holds what it said."""


class Qemu:
    """One QEMU process and its guest's console; killed on leaving the context."""

    def __init__(
        self,
        shape: GuestShape,
        ram_file: Path,
        folder: Path,
        *,
        restoring: SavedGuest | None = None,
        incoming: bool = False,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        binary: str | None = None,
        extra: Sequence[str] = (),
        memfd: bool = False,
    ) -> None:
        """Starts QEMU. Its sockets and log go to `folder` (a short path; it is made). It makes `ram_file`
        unless that is there; with `memfd` its RAM lies on one instead, and it cannot be saved.

        `restoring`: wait for this guest's state instead of booting. `incoming`: wait for one that moves here.
        `environment`: for QEMU alone (LD_PRELOAD and the like). `prefix`: a command that executes the rest of
        its line without forking (nsenter, setpriv). `binary`: else QEMU= of the environment, else the
        system's.
        """
        self.shape = shape
        self.ram_file = ram_file
        self._folder = folder
        self._qmp: Qmp | None = None
        folder.mkdir(parents=True, exist_ok=True)
        program = binary or os.environ.get("QEMU") or DEFAULT_BINARY
        if shutil.which(program) is None:
            raise QemuError(f"{program} is not here: install package qemu-system-x86, or name one by QEMU=")
        self.argv = [
            *prefix,
            *("setpriv", "--pdeathsig", "KILL"),
            *("env", *(f"{name}={value}" for name, value in (environment or {}).items())),
            *(program, *qemu_options(shape, ram_file, self._qmp_path, memfd=memfd), *extra),
            *(("-incoming", "defer") if restoring or incoming else ()),
        ]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                process_group=0,
            )
        assert self._process.stdout is not None
        self._pidfd = os.pidfd_open(self._process.pid)
        tail = restoring.tail if restoring else ""
        self.console = Console(self._process.stdout.fileno(), tail, self.stderr)

    @property
    def _qmp_path(self) -> Path:
        return self._folder / "qmp"

    @property
    def _log_path(self) -> Path:
        return self._folder / "stderr"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def qmp(self) -> Qmp:
        """Connected at first use: QEMU opens it only after its RAM is mapped, that is after a hand-off."""
        if self._qmp is None:
            self._qmp = Qmp(self._qmp_path, self.check_alive)
        return self._qmp

    def stderr(self) -> str:
        return self._log_path.read_text(errors="replace").strip()

    def exit_status(self) -> int | None:
        return self._process.poll()

    def check_alive(self) -> None:
        status = self.exit_status()
        if status is not None:
            raise QemuError(f"QEMU has ended with status {status}: {self.stderr() or 'it said nothing'}")

    def say(self, text: str) -> None:
        """Types into the guest's serial console; "epoch\\n" makes the workload count distinct pages from
        0.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    # -- source ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self.qmp.command("stop")

    def save(self, image: Path, timeout_s: float = 60) -> SavedGuest:
        """Stops the guest, takes its state and its RAM, and kills this QEMU: only then is all of its
        console here.
        """
        version = self.qmp.command("query-version")["qemu"]
        self.stop()
        state = self._take_state(time.monotonic() + timeout_s)
        copy_sparse(self.ram_file, image)
        plugged = plugged_file(image) if self.shape.plugged_mib else None
        if plugged is not None:
            copy_sparse(plugged_file(self.ram_file), plugged)
        self.kill()
        if not self.console.beats:
            raise QemuError("the guest was saved before its workload had begun")
        return SavedGuest(
            shape=self.shape,
            state=state,
            image=image,
            plugged_image=plugged,
            last_beat=self.console.beats[-1].number,
            tail=self.console.tail,
            qemu_version=f"{version['major']}.{version['minor']}.{version['micro']}",
        )

    def _take_state(self, deadline: float) -> bytes:
        path = self._folder / "state-out"
        self._ignore_shared()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            try:
                listener.listen(1)
                listener.settimeout(max(deadline - time.monotonic(), 0.001))
                self.qmp.command("migrate", uri=f"unix:{path}")
                connection, _ = listener.accept()
            finally:
                path.unlink()
        with connection:
            state = _receive_state(connection, deadline)
        self._await_migration(deadline)
        return state

    # -- destination -----------------------------------------------------------------------------------------

    def load(self, state: bytes, timeout_s: float = 60) -> None:
        """Feeds the state of devices and CPUs; loading may touch guest RAM. The guest stays paused until
        `resume`.
        """
        if len(state) > STATE_BYTES_MAX:
            raise QemuError(f"a state of {len(state)} bytes has RAM in it")
        deadline = time.monotonic() + timeout_s
        path = self._folder / "state-in"
        self._ignore_shared()
        self.qmp.command("migrate-incoming", uri=f"unix:{path}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(path))
                connection.sendall(state)
            except OSError as error:
                self._check_ended()
                raise QemuError("QEMU does not take the state") from error
            self._await_migration(deadline)

    def resume(self) -> None:
        self.qmp.command("cont")

    def _ignore_shared(self) -> None:
        capability = {"capability": "x-ignore-shared", "state": True}
        self.qmp.command("migrate-set-capabilities", capabilities=[capability])

    def _await_migration(self, deadline: float) -> None:
        """Names of states in between grow with QEMU's versions: all but the ends mean "not yet"."""
        while time.monotonic() < deadline:
            try:
                told: dict[str, Any] = self.qmp.command("query-migrate")
            except QmpError:
                self._check_ended()
                raise
            if told.get("status") == "completed":
                return
            if told.get("status") in ("failed", "cancelled"):
                raise QemuError(f"migration {told['status']}: {told.get('error-desc', self.stderr())}")
            time.sleep(0.005)
        raise QemuError("the migration did not end in time")

    def _check_ended(self) -> None:
        """A QEMU that cannot load a state exits, a moment after its sockets have ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self.check_alive()

    # -- the end ---------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """By SIGKILL, through a pidfd; then everything that the guest wrote has been read."""
        if self._pidfd < 0:
            return
        if self._qmp is not None:
            self._qmp.close()
        if self._process.poll() is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._process.wait()
        self.console.finish()
        os.close(self._pidfd)
        self._pidfd = -1
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _receive_state(connection: socket.socket, deadline: float) -> bytes:
    state = bytearray()
    while True:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = connection.recv(COPY_BYTES)
        if not piece:
            return bytes(state)
        state += piece
        if len(state) > STATE_BYTES_MAX:
            raise QemuError(f"the state is over {STATE_BYTES_MAX} bytes: RAM is in it")

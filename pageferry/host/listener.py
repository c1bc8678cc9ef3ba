# SPDX-License-Identifier: Apache-2.0
"""The hand-off socket: where it is, whose VMM may connect, what becomes of one that a dead process left."""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Self

from pageferry.host.handoff import Handoff, receive, refused
from pageferry.reasons import Reason


class Listener:
    """The hand-off socket: mode 0600, in a folder that is there already. Serves one VMM after another."""

    def __init__(self, path: Path, *, vmm_uid: int | None = None, in_its_place: bool = False) -> None:
        """`vmm_uid`: whose VMM may connect, beside root's and our own user's; the socket is given to it.
        `in_its_place`: so may somebody else who hands a VM over."""
        self.path = path
        self._in_its_place = in_its_place
        self._uids = {0, os.geteuid()} | ({vmm_uid} if vmm_uid is not None else set())
        self._inode: int | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._bind()
            if vmm_uid is not None and vmm_uid not in (0, os.geteuid()):
                self._give_to(vmm_uid)
        except BaseException:
            self.close()
            raise

    def _bind(self) -> None:
        if not self.path.parent.is_dir():
            raise refused(
                f"the folder of the hand-off socket, {self.path.parent}, is not there", "make it first"
            )
        try:
            self._remove_dead()
            os.fchmod(self._socket.fileno(), 0o600)  # bind takes the socket's mode (Linux): no umask is set
            self._socket.bind(str(self.path))
            self._inode = self.path.lstat().st_ino
            self._socket.listen(1)
        except OSError as error:
            raise refused(
                f"cannot listen on {self.path}: {error.strerror or error}", "name another path"
            ) from error

    def _remove_dead(self) -> None:
        """A socket that nobody listens on was left by a process that died.

        The probe is of another kind than the socket, so that a fault client that lives does not take it for
        its VMM: the kernel says that there is somebody (EPROTOTYPE), and connects nobody.
        """
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise refused(f"{self.path} is there and is no socket", "name another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                return
            except OSError as error:
                if error.errno != errno.EPROTOTYPE:
                    raise
        raise refused(
            f"another fault client listens on {self.path}",
            "stop it, or name another path",
            Reason.ALREADY_ATTACHED,
        )

    def _give_to(self, uid: int) -> None:
        """Who may not write to the socket cannot connect to it."""
        try:
            os.chown(self.path, uid, -1)
        except OSError as error:
            raise refused(
                f"cannot give the hand-off socket to uid {uid}: {error.strerror}",
                "run the fault client as that user, or as root",
                Reason.NOT_ALLOWED,
            ) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self, *, timeout_s: float | None = None) -> Handoff:
        """Waits for a VMM and takes its hand-off.

        PageferryError: TOO_SLOW when nobody came, or the message did not; else what was wrong with it.
        """
        self._socket.settimeout(timeout_s)
        try:
            connection, _ = self._socket.accept()
        except TimeoutError as error:
            raise refused(
                f"no VMM has connected to {self.path} in {timeout_s:g} s", "start the VMM", Reason.TOO_SLOW
            ) from error
        try:
            return receive(connection, uids=self._uids, in_its_place=self._in_its_place)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Takes the socket away, if it is still ours."""
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            if self._inode is not None and self.path.lstat().st_ino == self._inode:
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

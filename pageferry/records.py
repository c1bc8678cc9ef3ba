# SPDX-License-Identifier: Apache-2.0
"""What an end remembers of its sessions over its own death: one JSON file a session, in a folder of its own.

A record is on disk before the act that it announces (phases.DURABLE): written beside the old one, synced, put
in its place by a rename, the folder synced. So whoever reads finds the old record or the new one, whole. The
writer waits for the disk: until then the end that writes may do nothing else about this session anyway. On a
tmpfs, which forgets with its host as a guest does, that is nothing.

No tokens are in it, only their hashes; the folder is its owner's alone all the same.
"""

import errno
import fcntl
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from pageferry.limits import SESSION_NAME_BYTES_MAX
from pageferry.reasons import PageferryError, Reason

FORMAT: Final = 1
SUFFIX: Final = ".json"
WAITING: Final = ".new"
LOCK: Final = "lock"
SESSION_NAME: Final = re.compile(f"[a-z0-9-]{{1,{SESSION_NAME_BYTES_MAX}}}")
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
DENIED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class Records:
    """A folder of them, made if it is not there, and this process's as long as it is open."""

    def __init__(self, folder: Path) -> None:
        """PageferryError: it cannot be had, or another process has it."""
        self.folder = folder
        self._fd = -1
        self._lock_fd = -1
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._lock_fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise PageferryError(
                Reason.ALREADY_ATTACHED,
                f"another process keeps its records in {folder}",
                "end it, or name another folder with --state-dir",
            ) from error
        except OSError as error:
            self.close()
            raise self._failed(f"cannot keep records in {folder}", error) from error

    def write(self, session: str, fields: Mapping[str, Any]) -> None:
        """On disk when this returns. PageferryError: the record that was there still is, or this one."""
        name = _file_name(session)
        text = json.dumps({"format": FORMAT, "session": session, **fields}, indent=1) + "\n"
        try:
            fd = os.open(
                name + WAITING, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._fd
            )
            with os.fdopen(fd, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.rename(name + WAITING, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(f"cannot record session {session}", error) from error

    def remove(self, session: str) -> None:
        """It may be gone already."""
        try:
            os.unlink(_file_name(session), dir_fd=self._fd)
            os.fsync(self._fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed(f"cannot remove the record of session {session}", error) from error

    def load_all(self) -> dict[str, dict[str, Any]]:
        """By session. PageferryError: one of them cannot be understood; nobody can say then where its guest
        runs, so nothing is guessed."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(SUFFIX + WAITING):
                path.unlink()  # its writer died before it was whole
            elif path.name.endswith(SUFFIX):
                found[path.name.removesuffix(SUFFIX)] = _read(path)
        return found

    def close(self) -> None:
        for fd in (self._lock_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, what: str, error: OSError) -> PageferryError:
        message = f"{what}: {error.strerror or error}"
        if error.errno in FULL:
            return PageferryError(Reason.NO_MEMORY, message, f"make room in {self.folder}")
        if error.errno in DENIED:
            return PageferryError(
                Reason.NOT_ALLOWED, message, "let this user write there, or name another folder (--state-dir)"
            )
        return PageferryError(Reason.BAD_REQUEST, message, "name a folder of a file system that works")


class NoRecords(Records):
    """Of a process that has no sessions, and will have none: it needs no folder, and takes nobody's."""

    def __init__(self) -> None:
        self.folder = Path(os.devnull)
        self._fd = self._lock_fd = -1

    def write(self, session: str, fields: Mapping[str, Any]) -> None:
        raise AssertionError(f"session {session} has nowhere to be recorded")

    def remove(self, session: str) -> None:
        raise AssertionError(f"session {session} was never recorded")

    def load_all(self) -> dict[str, dict[str, Any]]:
        return {}


def _file_name(session: str) -> str:
    if SESSION_NAME.fullmatch(session) is None:
        raise ValueError(f"{session!r} is no name of a session")
    return session + SUFFIX


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
        if fields.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if fields.pop("session", None) != path.name.removesuffix(SUFFIX):
            raise ValueError("it is of another session")
    except (OSError, ValueError) as error:
        raise unreadable(path, str(error)) from error
    return fields


def unreadable(path: Path, why: str) -> PageferryError:
    return PageferryError(
        Reason.MISMATCH,
        f"the record {path} cannot be understood: {why}",
        "find out where the guest of this session runs, then take the record away",
    )

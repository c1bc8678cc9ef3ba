# SPDX-License-Identifier: Apache-2.0
"""Settings of this machine that a test changes, put back whatever becomes of the test.

    with Settings() as machine:
        machine.write(SHMEM_ENABLED, "advise")
        folder = machine.tmpfs("huge=always", "size=64m")
        machine.add_huge_pages(16)

A process of its own, the guard, makes each change and undoes them all, newest first, when its standard
input ends: when the context is left, and just as well when the test is killed in the middle. It is in a
session of its own and deaf to what ends a test run. A setting that somebody else has changed in this way is
waited for; of a pool of huge pages one takes a part on top of what is there, and gives back exactly that.

    tests/support/settings.py        the guard itself; no test starts it by hand
"""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

THP: Final = Path("/sys/kernel/mm/transparent_hugepage")
SHMEM_ENABLED: Final = THP / "shmem_enabled"
HUGE_2_MIB: Final = 2 << 20
# How long somebody else's test may have a setting.
PATIENCE_S: Final = 240.0
POLL_S: Final = 0.1
LOCKS: Final = Path(tempfile.gettempdir(), "pageferry-settings")


class SettingsError(Exception):
    """A change could not be made, and nothing of it is left."""


def pool(page_bytes: int) -> Path:
    """Where the kernel keeps the size of a pool of huge pages."""
    return Path(f"/sys/kernel/mm/hugepages/hugepages-{page_bytes // 1024}kB/nr_hugepages")


def chosen(text: str) -> str:
    """The value of a setting that lists all there are, the present one in brackets; or the text as it is."""
    found = re.search(r"\[([^]]*)\]", text)
    return found.group(1) if found is not None else text.strip()


class Settings:
    """Changes of one test. Left as it was when the context ends, or the process does."""

    def __init__(self) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _ask(self, *words: str | int) -> str:
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.write(json.dumps(words) + "\n")
        self._guard.stdin.flush()
        answer = self._guard.stdout.readline()
        if not answer:
            raise SettingsError(f"the guard of settings has ended with {self._guard.wait()}")
        good, text = json.loads(answer)
        if not good:
            raise SettingsError(text)
        return str(text)

    def write(self, path: Path, value: str) -> None:
        self._ask("write", str(path), value)

    def tmpfs(self, *options: str) -> Path:
        """A folder with a tmpfs of its own, mounted so."""
        return Path(self._ask("tmpfs", *options))

    def hugetlbfs(self, page_bytes: int = HUGE_2_MIB, *, size_bytes: int = 0) -> Path:
        """A folder with a hugetlbfs of its own, which may have less room than the pool."""
        return Path(self._ask("hugetlbfs", page_bytes, size_bytes))

    def add_huge_pages(self, count: int, page_bytes: int = HUGE_2_MIB) -> None:
        """To the pool, for this test."""
        self._ask("pages", str(pool(page_bytes)), count)

    def close(self) -> None:
        """All is as it was when this returns."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        status = self._guard.wait()
        if self._guard.stdout is not None:
            self._guard.stdout.close()
        if status != 0:
            raise SettingsError(f"a setting could not be put back: the guard has ended with {status}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# -------------------------------------------------------------------------------------------------- the guard


class Guard:
    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def _lock(self, path: str) -> Callable[[], None]:
        """A setting has one owner at a time. Returns what gives it up."""
        LOCKS.mkdir(exist_ok=True)
        lock = (LOCKS / path.strip("/").replace("/", "-")).open("w")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock.close
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SettingsError(f"{path} has been changed by somebody else for too long") from None
            time.sleep(POLL_S)

    def write(self, path: str, value: str) -> str:
        unlock = self._lock(path)
        before = chosen(Path(path).read_text())

        def undo() -> None:
            Path(path).write_text(before)
            unlock()

        self._undo.append(undo)
        Path(path).write_text(value)
        return before

    def _mounted(self, kind: str, options: str) -> str:
        folder = tempfile.mkdtemp(prefix=f"pageferry-{kind}-")

        def undo() -> None:
            subprocess.run(["umount", "--lazy", folder], check=False, stderr=subprocess.DEVNULL)
            Path(folder).rmdir()  # fails if it is mounted still: nothing on it is ever removed

        self._undo.append(undo)
        words = ["mount", "-t", kind, *(("-o", options) if options else ()), f"pageferry-{kind}", folder]
        made = subprocess.run(words, check=False, capture_output=True, text=True)
        if made.returncode != 0:
            raise SettingsError(made.stderr.strip())
        return folder

    def tmpfs(self, *options: str) -> str:
        return self._mounted("tmpfs", ",".join(options))

    def hugetlbfs(self, page_bytes: int, size_bytes: int) -> str:
        size = f",size={size_bytes}" if size_bytes else ""
        return self._mounted("hugetlbfs", f"pagesize={page_bytes}{size}")

    def pages(self, path: str, count: int) -> str:
        """The lock is for the change alone: others may add theirs meanwhile."""

        def add(more: int) -> int:
            unlock = self._lock(path)
            before = int(Path(path).read_text())
            Path(path).write_text(str(max(before + more, 0)))
            got = int(Path(path).read_text()) - before
            unlock()
            return got

        def give_back(had: int) -> None:
            if had > 0:
                add(-had)

        got = add(count)
        self._undo.append(lambda: give_back(got))
        if got < count:
            raise SettingsError(f"{path}: {count} more pages are not to be had, {got} are")
        return str(got)

    def obey(self, words: list[str | int]) -> tuple[bool, str]:
        name, *arguments = words
        try:
            return True, str(getattr(self, str(name))(*arguments))
        except (OSError, SettingsError, ValueError) as error:
            return False, f"{name}: {error}"

    def undo_all(self) -> int:
        """How many could not be undone."""
        failed = 0
        for undo in reversed(self._undo):
            try:
                undo()
            except OSError as error:
                print(f"settings: {error}", file=sys.stderr)
                failed += 1
        return failed


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    guard = Guard()
    for line in sys.stdin:
        answer = json.dumps(guard.obey(json.loads(line)))
        try:
            print(answer, flush=True)
        except BrokenPipeError:  # whoever asked is gone
            break
    status = guard.undo_all()
    sys.stdout = open("/dev/null", "w")  # noqa: SIM115, PTH123  # nothing to flush to somebody who is gone
    return status


if __name__ == "__main__":
    if shutil.which("mount") is None:
        sys.exit("settings: no mount(8) here")
    sys.exit(main())

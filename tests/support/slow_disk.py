# SPDX-License-Identifier: Apache-2.0
"""A disk that takes as long as a test wants: a loop device whose reads by one process a cgroup holds back.

Held back is what has been given to the block layer already: the pages that it will write are pinned by then.
"""

import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT_V2 = Path("/sys/fs/cgroup")
ROOT_V1 = Path("/sys/fs/cgroup/blkio")
PATIENCE_S = 20


class NoSlowDisk(Exception):
    """What is absent here."""


def _controller() -> tuple[Path, str]:
    """The cgroup that can throttle, and the file of it that says how much."""
    if (ROOT_V1 / "blkio.throttle.read_bps_device").exists():
        return ROOT_V1, "blkio.throttle.read_bps_device"
    controllers = ROOT_V2 / "cgroup.controllers"
    if controllers.exists() and "io" in controllers.read_text().split():
        return ROOT_V2, "io.max"
    raise NoSlowDisk("no cgroup that throttles block devices")


class SlowDisk:
    """`content`, as a block device, for the process of this number; it is quick until `hold`."""

    def __init__(self, content: bytes, folder: Path, pid: int) -> None:
        root, name = _controller()
        if os.geteuid() != 0:
            raise NoSlowDisk("no right to make a loop device")
        self._image = folder / "disk.img"
        self._image.write_bytes(content)
        command: list[str | Path] = ["losetup", "--find", "--show", self._image]
        found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if found.returncode != 0:
            raise NoSlowDisk(f"no loop device: {found.stderr.strip()}")
        self.path = Path(found.stdout.strip())
        number = self.path.stat().st_rdev
        self._device = f"{os.major(number)}:{os.minor(number)}"
        self._root, self._pid = root, pid
        self._group = root / f"pageferry-test-{os.getpid()}"
        self._limit = self._group / name
        try:
            if root == ROOT_V2:
                (root / "cgroup.subtree_control").write_text("+io")
            self._group.mkdir()
            (self._group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            self.close()
            raise NoSlowDisk(f"no cgroup of our own: {error}") from error

    def _throttle(self, bytes_per_s: int) -> None:
        if self._limit.name == "io.max":
            self._limit.write_text(f"{self._device} rbps={bytes_per_s or 'max'}")
        else:
            self._limit.write_text(f"{self._device} {bytes_per_s}")

    def hold(self) -> None:
        """Reads that are given to it from now on do not end."""
        self._throttle(1)

    def release(self) -> None:
        """Nor do they wait any longer."""
        self._throttle(0)

    def wait_until_held(self) -> None:
        """Until a thread of the process sleeps in the block layer, and stays there."""
        deadline, seen = time.monotonic() + PATIENCE_S, 0
        while seen < 5:
            assert time.monotonic() < deadline, "no read is held"
            states = [stat.read_text().rpartition(")")[2].split()[0] for stat in self._tasks()]
            seen = seen + 1 if "D" in states else 0
            time.sleep(0.01)

    def _tasks(self) -> list[Path]:
        return list(Path(f"/proc/{self._pid}/task").glob("*/stat"))

    def close(self) -> None:
        """Nothing of it is left, whatever became of the process."""
        if self._group.exists():
            if self._limit.exists():
                self.release()
            for pid in (self._group / "cgroup.procs").read_text().split():
                (self._root / "cgroup.procs").write_text(pid)
            self._group.rmdir()
        subprocess.run(["losetup", "--detach", self.path], check=True, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

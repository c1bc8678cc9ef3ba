# SPDX-License-Identifier: Apache-2.0
"""A guest that gives memory away and takes it back, again and again, by QMP: its balloon is inflated and
deflated, its virtio-mem unplugged and plugged in.

    with Qemu(shape, ..., extra=Giving.options(folder)) as guest, Giving(guest, folder) as giving:
        ...
    print(giving.counts)

A thread of its own, with a QMP socket of its own. How fast the guest follows is its own affair: only what it
has done is counted.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.qemu import Qemu
from tests.support.qmp import Qmp, QmpError

MIB: Final = 1 << 20
PLUGGED: Final = "/machine/peripheral/plugged0"
# Of what is not the workload's: so much stays with the guest's kernel, which else would look for it by force.
KERNEL_MIB: Final = 128
NEAR_MIB: Final = 1
UNUSED_TURNS: Final = 4
BALLOON_TURNS: Final = 3  # between two of the others
PATIENCE_S: Final = 20.0
POLL_S: Final = 0.02


@dataclass
class Counts:
    inflated: int = 0
    deflated: int = 0
    unplugged: int = 0
    plugged: int = 0
    refused: int = 0  # what the guest did not do within PATIENCE_S


class Giving:
    def __init__(self, guest: Qemu, folder: Path) -> None:
        self.counts = Counts()
        self._guest = guest
        self._shape = guest.shape
        self._qmp = Qmp(folder / "qmp-giving", guest.check_alive)
        self._stop = threading.Event()
        self._failure: QmpError | None = None
        self._thread = threading.Thread(target=self._run, name="giving")

    @staticmethod
    def options(folder: Path) -> list[str]:
        """Of QEMU: the second QMP socket."""
        return ["-qmp", f"unix:{folder / 'qmp-giving'},server=on,wait=off"]

    @property
    def amplitude_mib(self) -> int:
        """How much the balloon takes."""
        return self._shape.memory_mib + self._shape.plugged_mib - self._shape.workload_mib - KERNEL_MIB

    def balloon_once(self, given_mib: int) -> bool:
        """The balloon holds so much; whether it came to that."""
        target = (self._shape.memory_mib - given_mib) * MIB  # QEMU does not count what is plugged in
        self._qmp.command("balloon", value=target)
        return self._wait(lambda: abs(self._balloon_bytes() - target) <= NEAR_MIB * MIB)

    def _balloon_bytes(self) -> int:
        return int(self._qmp.command("query-balloon")["actual"])

    def plug_once(self, mib: int) -> bool:
        self._qmp.command("qom-set", path=PLUGGED, property="requested-size", value=mib * MIB)
        return self._wait(lambda: self._plugged_bytes() == mib * MIB)

    def _plugged_bytes(self) -> int:
        return int(self._qmp.command("qom-get", path=PLUGGED, property="size"))

    def _wait(self, happened: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while not happened() and not self._stop.is_set():
            if time.monotonic() > deadline:
                self.counts.refused += 1
                return False
            time.sleep(POLL_S)
        return happened()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._turn()
        except QmpError as error:
            self._failure = error

    def _turn(self) -> None:
        if not self._shape.plugged_mib:
            self._inflate_and_deflate()
        else:
            for _ in range(UNUSED_TURNS):  # of what nobody has used yet
                self._plug_and_unplug(self._shape.pluggable_mib, self._shape.plugged_mib)
            self._plug_and_unplug(self._shape.plugged_mib, 0)  # what is in use is read, page by page

    def _plug_and_unplug(self, more_mib: int, less_mib: int) -> None:
        if not self._stop.is_set():
            self.counts.plugged += self.plug_once(more_mib)
            self.counts.unplugged += self.plug_once(less_mib)
        self._inflate_and_deflate()

    def _inflate_and_deflate(self) -> None:
        for _ in range(BALLOON_TURNS if self._shape.balloon else 0):
            if not self._stop.is_set():
                self.counts.inflated += self.balloon_once(self.amplitude_mib)
                self.counts.deflated += self.balloon_once(0)

    def start(self) -> None:
        """Once the guest runs."""
        self._thread.start()

    def stop(self) -> None:
        """After the step that is under way; what went wrong meanwhile is raised."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if kind is not None:
            self._guest.kill()  # else a command that waits for a page would be waited for
        if self._thread.is_alive():
            self._thread.join()
        self._qmp.close()

# SPDX-License-Identifier: Apache-2.0
"""vmm.c as a process of a test: a small VMM with a real vCPU, under the shim. Its orders are in vmm.c."""

import os
import subprocess
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.build import ROOT

PAGE_BYTES: Final = 4096
PROGRAMS: Final = ROOT / "native/build/kvm"
PATIENCE_S: Final = 30.0


@cache
def build() -> Path:
    """The folder of the programs in C, up to date."""
    subprocess.run(["make", "--silent", "--no-print-directory", "-C", "native", "kvm"], cwd=ROOT, check=True)
    return PROGRAMS


def why_not() -> str | None:
    """What is absent here for a vCPU of our own."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"no /dev/kvm: {error.strerror}"
    return None


class KvmVmm:
    """Running from its construction on; `ready` returns once the fault client has taken its RAM."""

    def __init__(self, pages: int, handoff: Path) -> None:
        settings = {
            "LD_PRELOAD": str(ROOT / "native/build/pageferry-shim.so"),
            "PAGEFERRY_SHIM_RAM": "memfd:kvm-ram",
            "PAGEFERRY_SHIM_SOCKET": str(handoff),
        }
        self._process = subprocess.Popen(
            [PROGRAMS / "vmm", str(pages)],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._vcpu = 0

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def ready(self) -> None:
        word, thread, _ = self._hear().split()
        assert word == "ready"
        self._vcpu = int(thread)

    def ask(self, order: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return self._hear()

    def do(self, order: str) -> None:
        assert self.ask(order) == "ok", order

    def stopped(self) -> str:
        """What the vCPU has stopped with, once it has."""
        return self.ask("wait")

    def asleep(self) -> bool:
        """The vCPU waits for a page, as the kernel sees it."""
        return "userfault" in Path(f"/proc/{self._process.pid}/task/{self._vcpu}/wchan").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE_S)

# SPDX-License-Identifier: Apache-2.0
"""small_vmm.c as a process of a test."""

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

PAGES: Final = 16
PAGE_BYTES: Final = 4096
PATIENCE_S: Final = 20.0


class Vmm:
    """The small VMM under the shim. `expect` reads what a step printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().rstrip("\n") == line

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Exit status, and what it said on stderr."""
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said


Starter = Callable[..., AbstractContextManager[Vmm]]

# SPDX-License-Identifier: Apache-2.0
"""Holds the interpreter of one of our processes still, from a test (gil_holder.py is what runs over there).

with Holder.made() as holder, holder.client(folder, address) as run:
    with holder.holding():
        ...
"""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.build import SUPPORT, compiled
from tests.support.pair import Client, client
from tests.support.processes import PATIENCE_S


@dataclass(frozen=True, slots=True)
class Holder:
    """The pipes to a process that was started by gil_holder.py, and how to start it."""

    go: tuple[int, int]
    held: tuple[int, int]
    release: tuple[int, int]

    @classmethod
    @contextmanager
    def made(cls) -> Iterator[Self]:
        holder = cls(os.pipe(), os.pipe(), os.pipe())
        try:
            yield holder
        finally:
            for fd in (*holder.go, *holder.held, *holder.release):
                os.close(fd)

    def launcher(self, module: str) -> list[str]:
        library = compiled("gil_holder.so", ["gil_holder.c"], [], "-shared", "-fPIC")
        fds = (self.go[0], self.held[1], self.release[0])
        return [sys.executable, *map(str, (SUPPORT / "gil_holder.py", library, *fds)), module]

    def client(self, folder: Path, address: str, *options: str) -> Client:
        launcher = self.launcher("faultclient.cli")
        return client(folder, address, *options, launcher=launcher, pass_fds=self.pass_fds)

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return self.go[0], self.held[1], self.release[0]

    @contextmanager
    def holding(self) -> Iterator[None]:
        """No Python runs over there inside this."""
        os.write(self.go[1], b"g")
        assert select.select([self.held[0]], [], [], PATIENCE_S)[0], "the GIL was not taken"
        os.read(self.held[0], 1)
        try:
            yield
        finally:
            os.write(self.release[1], b"r")

# SPDX-License-Identifier: Apache-2.0
"""How a process says that it is ready: one JSON object, in a file or down a descriptor.

For whoever started it. The ports are in it: a test or an orchestrator may ask for port 0 and read which
one it became.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pageferry.reasons import PageferryError, Reason


def ready_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--ready-file and --ready-fd, the same at every command that serves."""
    command = click.option(
        "--ready-fd",
        type=click.IntRange(0),
        metavar="FD",
        help="The same down this open descriptor, which is closed then.",
    )(command)
    return click.option(
        "--ready-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="PATH",
        help="Written, whole or not at all, once everything is served: JSON with the addresses and the pid.",
    )(command)


@dataclass(frozen=True, slots=True)
class Ready:
    file: Path | None = None
    fd: int | None = None

    def check(self) -> None:
        """Before anything is begun. PageferryError: it could not be said. What an earlier process said is
        removed."""
        if self.fd is not None:
            try:
                os.fstat(self.fd)
            except OSError as error:
                raise PageferryError(
                    Reason.BAD_REQUEST,
                    f"descriptor {self.fd} is not open",
                    "leave it open when you start this",
                ) from error
        if self.file is not None:
            try:
                self.file.unlink(missing_ok=True)
                self._waiting.touch()
            except OSError as error:
                raise self._not_written(error) from error

    def say(self, facts: Mapping[str, Any]) -> None:
        """PageferryError: it cannot be said any more."""
        text = json.dumps({"pid": os.getpid(), **facts}) + "\n"
        if self.file is not None:
            try:
                self._waiting.write_text(text)
                self._waiting.rename(self.file)
            except OSError as error:
                raise self._not_written(error) from error
        if self.fd is not None:
            try:
                with open(self.fd, "w", closefd=self.fd > 2) as down:
                    down.write(text)
            except OSError as error:
                raise PageferryError(
                    Reason.GOING_AWAY, f"nobody reads descriptor {self.fd}: {error.strerror}"
                ) from error

    @property
    def _waiting(self) -> Path:
        assert self.file is not None
        return self.file.with_name(f"{self.file.name}.new")

    def _not_written(self, error: OSError) -> PageferryError:
        return PageferryError(
            Reason.BAD_REQUEST,
            f"cannot write {self.file}: {error.strerror}",
            "name a file in a folder of yours",
        )

# SPDX-License-Identifier: Apache-2.0
"""How far the look at an image has come: a bar on a terminal, elsewhere a line in the log now and then."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pageferry.service.logs import log

# done and total bytes, as often as `every_s` says
Show = Callable[[int, int], None]

ON_TERMINAL_S: Final = 0.1
IN_LOG_S: Final = 2.0


@contextmanager
def bar(title: str) -> Iterator[Show]:
    """On stderr; stdout is for results. Nothing of it stays."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


@contextmanager
def lines(image: str) -> Iterator[Show]:
    yield lambda done, total: log.info("reading", image=image, done_bytes=done, total_bytes=total)


def shown(image: str, *, on_terminal: bool) -> tuple[float, AbstractContextManager[Show]]:
    """How often to look, and what to call then."""
    return (ON_TERMINAL_S, bar(f"reading {image}")) if on_terminal else (IN_LOG_S, lines(image))

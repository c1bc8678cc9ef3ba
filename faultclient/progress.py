# SPDX-License-Identifier: Apache-2.0
"""A restore on a terminal, while it goes on: pages that are here, and faults."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from faultclient.restore import Restore

INTERVAL_S: Final = 0.1


async def show_progress(session: Restore) -> None:
    """On stderr, until the session has ended; stdout is for results."""
    columns = (
        TextColumn("{task.fields[phase]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pages  {task.fields[faults]} faults, {task.fields[waiting]} waiting"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress, log_above():
        task = progress.add_task("", total=session.taken.pager.pages().total, **figures(session))
        while not session.ended:
            progress.update(task, completed=session.taken.pager.pages().here, **figures(session))
            with suppress(TimeoutError):
                await asyncio.wait_for(session.over(), INTERVAL_S)
        progress.update(task, completed=session.taken.pager.pages().here, **figures(session))


def figures(session: Restore) -> dict[str, Any]:
    counters = session.taken.pager.counters()
    return {
        "phase": session.phase.name if session.paused is None else f"PAUSED {session.paused.name}",
        "faults": counters["faults_total"],
        "waiting": counters["asks_outstanding"],
    }


@contextmanager
def log_above() -> Iterator[None]:
    """Lines of the log go through what stderr is now, which moves the bar out of their way."""
    before = structlog.get_config()["logger_factory"]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        yield
    finally:
        structlog.configure(logger_factory=before)

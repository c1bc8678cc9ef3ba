# SPDX-License-Identifier: Apache-2.0
"""A restore on a terminal, while it goes on: pages that are here, and faults."""

import asyncio
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from faultclient.session import Session

INTERVAL_S: Final = 0.1


async def show_progress(session: Session) -> None:
    """On stderr, until the session has ended; stdout is for results."""
    pager = session.vm.pager
    total = pager.pages().total
    with Progress(
        TextColumn("{task.fields[phase]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pages  {task.fields[faults]} faults, {task.fields[waiting]} waiting"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("", total=total, phase="", faults=0, waiting=0)
        while not session.ended:
            counters = pager.counters()
            progress.update(
                task,
                completed=pager.pages().here,
                phase=session.phase.name if session.paused is None else f"PAUSED {session.paused.name}",
                faults=counters["faults_total"],
                waiting=counters["asks_outstanding"],
            )
            await asyncio.sleep(INTERVAL_S)

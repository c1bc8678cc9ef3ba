# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the page server: the data plane is first up and last down."""

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pageferry.service.addresses import Address, bound, listening
from pageferry.service.logs import log
from pageferry.service.metrics import DataPlane as DataPlaneMetrics
from pageferry.service.metrics import exposed
from pageferry.service.serving import ControlPort
from pageserver.dataplane import DataPlane, Progress, inspect
from pageserver.images import ImageFile

DRAIN_LOOK_S: Final = 0.05
PROGRESS_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What config.py makes of flags and environment."""

    data_listen: Address
    control_listen: Address
    metrics_listen: Address | None
    threads: int
    drain_timeout_s: float
    ready_file: Path | None


async def look_at(image: ImageFile, data_plane: DataPlane) -> None:
    """Reads the image once, on another thread, and serves it. Says how far it is when that takes long."""
    progress = Progress()
    look = asyncio.create_task(asyncio.to_thread(inspect, image, progress))
    try:
        while not (await asyncio.wait({look}, timeout=PROGRESS_S))[0]:
            log.info(
                "reading", image=image.name, done_bytes=progress.done_bytes, total_bytes=progress.total_bytes
            )
        facts = look.result()
    finally:
        progress.cancel()
        await asyncio.wait({look})
    data_plane.add(image, facts)
    log.info(
        "image",
        image=image.name,
        path=str(image.path),
        pages=facts.page_count,
        data_pages=facts.data_pages,
        content_id=f"{facts.content_id:016x}",
    )


def announce(options: ServeOptions, data: Address, control: Address) -> None:
    log.info("serving", data=str(data), control=str(control), metrics=str(options.metrics_listen))
    if options.ready_file is not None:
        ready = {"pid": os.getpid(), "data": str(data), "control": str(control)}
        waiting = options.ready_file.with_suffix(".new")
        waiting.write_text(json.dumps(ready) + "\n")
        waiting.rename(options.ready_file)  # never seen half written


async def drain(data_plane: DataPlane, timeout_s: float) -> None:
    """Lets open calls end. Nothing is lost by one that does not: its client asks again, or elsewhere."""
    data_plane.health(False)
    data_plane.drain()
    try:
        async with asyncio.timeout(timeout_s):
            while data_plane.open_calls() > 0:
                await asyncio.sleep(DRAIN_LOOK_S)
    except TimeoutError:
        log.warning("drain_cut", open_calls=data_plane.open_calls(), after_s=timeout_s)


def stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first SIGTERM or SIGINT, and by the second."""
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return first, second


async def until_either(work: asyncio.Task[None], event: asyncio.Event) -> None:
    """Ends the work when the event comes; what the work raised is raised here."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not work.done():
        work.cancel()
        await asyncio.wait({work})
    if not work.cancelled():
        work.result()


async def look_at_all(images: Sequence[ImageFile], data_plane: DataPlane) -> None:
    for image in images:
        await look_at(image, data_plane)


async def serve(images: Sequence[ImageFile], options: ServeOptions) -> None:
    """Until SIGTERM or SIGINT, and then until the open calls are done; a second signal cuts that short."""
    first, second = stop_signals()
    with ExitStack() as stack:
        data_socket = stack.enter_context(listening(options.data_listen))
        if options.data_listen.path is not None:
            stack.callback(options.data_listen.path.unlink, missing_ok=True)
        data_plane = stack.enter_context(DataPlane([data_socket], options.threads))
        stack.enter_context(
            exposed(options.metrics_listen, DataPlaneMetrics(data_plane.counters, data_plane.histogram))
        )
        async with ControlPort(options.control_listen, lambda _: None, ()) as control:
            await control.serving(False)
            await until_either(asyncio.create_task(look_at_all(images, data_plane)), first)
            if not first.is_set():
                data_plane.health(True)
                await control.serving(True)
                announce(options, bound(data_socket, options.data_listen), control.address)
                await first.wait()
            log.info("draining", open_calls=data_plane.open_calls())
            await control.serving(False)
            await until_either(asyncio.create_task(drain(data_plane, options.drain_timeout_s)), second)
    log.info("ended")

# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the page server: the data plane is first up and last down.

The ports are taken before images are read, so that one that is in use is known at once; health says
NOT_SERVING until all are. On SIGTERM sessions that are not handed over are given up, and those that are go
on to their end. Then health says NOT_SERVING, no new calls are taken, open ones end with GOING_AWAY once what
they owe is answered: a client goes on with the next server, and has lost nothing.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final

import grpc

from pageferry.reasons import PageferryError, Reason
from pageferry.records import NoRecords, Records
from pageferry.service.abilities import say_leaving
from pageferry.service.addresses import Address, bound, listening
from pageferry.service.logs import log
from pageferry.service.metrics import DataPlane as DataPlaneMetrics
from pageferry.service.metrics import exposed
from pageferry.service.serving import ControlPort
from pageferry.units import merge
from pageferry.v1.migrations_pb2_grpc import add_MigrationServiceServicer_to_server
from pageserver.config import ServeOptions
from pageserver.dataplane import DataPlane, Progress, inspect
from pageserver.images import ImageFile
from pageserver.poison import Poison, settle
from pageserver.progress import shown
from pageserver.service import NAME, MigrationService
from pageserver.sessions import Sessions
from pageserver.switchover import in_thread
from pageserver.vms import Vms

DRAIN_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Ports:
    """All that is up, with the addresses that it has become."""

    data_plane: DataPlane
    control: ControlPort
    data: Address
    metrics: Address | None
    sessions: Sessions  # of VMs that run here, and what is lost of all images


# ------------------------------------------------------------------------------------------------------ start


async def bring_up(options: ServeOptions, stack: AsyncExitStack) -> Ports:
    """Takes the ports, the data port first. They go down in reverse order with the stack."""
    data_socket = stack.enter_context(listening(options.data_listen))
    if options.data_listen.path is not None:
        stack.callback(options.data_listen.path.unlink, missing_ok=True)
    data_plane = stack.enter_context(DataPlane([data_socket], options.threads))
    figures = DataPlaneMetrics(data_plane.counters, data_plane.histogram)
    metrics = await stack.enter_async_context(exposed(options.metrics_listen, figures))
    sessions, service = await bring_up_vms(options, data_plane, stack)

    def add(server: grpc.aio.Server) -> None:
        add_MigrationServiceServicer_to_server(service, server)

    control = ControlPort(options.control_listen, add, (NAME,), serving=False, grace_s=0)
    await stack.enter_async_context(control)
    # Whatever ends this process in good order: targets report while the control port is up.
    stack.push_async_callback(sessions.end)
    return Ports(data_plane, control, bound(data_socket, options.data_listen), metrics, sessions)


async def bring_up_vms(
    options: ServeOptions, data_plane: DataPlane, stack: AsyncExitStack
) -> tuple[Sessions, MigrationService]:
    """Takes the hand-off sockets, finds the sessions of an earlier server again, and takes what VMs hand over
    from now on."""
    if options.vms:
        say_leaving()
    loop = asyncio.get_running_loop()
    records = stack.enter_context(Records(options.state_dir) if options.vms else NoRecords())
    sessions = Sessions(data_plane, records)
    stack.push_async_callback(sessions.poison.close)
    vms = Vms(
        options.vms,
        data_plane,
        on_gone=sessions.vmm_gone,
        on_complete=sessions.vmm_complete,
        vmm_uid=options.vmm_uid,
        poison=sessions.poison,
    )
    stack.push_async_callback(vms.close)
    stack.push_async_callback(sessions.close)
    loop.add_reader(data_plane.event_fd(), sessions.catch_up)
    stack.callback(loop.remove_reader, data_plane.event_fd())
    sessions.recover(vms)
    taking = asyncio.create_task(vms.take_all())
    stack.push_async_callback(cancelled, taking)
    # Whatever ends this process in good order, a guest that was stopped for a hand-over runs again.
    stack.push_async_callback(sessions.give_up)
    return sessions, MigrationService(sessions, vms)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def read_and_add(
    image: ImageFile, data_plane: DataPlane, poison: Poison, *, on_terminal: bool
) -> None:
    """Reads the image once, on another thread, and serves it. Says how far it is when that takes long."""
    progress = Progress()
    left_out = merge(image.poison.left_out) if image.poison is not None else ()
    look = asyncio.create_task(asyncio.to_thread(inspect, image, progress, left_out))
    every_s, showing = shown(image.name, on_terminal=on_terminal)
    try:
        with showing as show:
            while not (await asyncio.wait({look}, timeout=every_s))[0]:
                show(progress.done_bytes, progress.total_bytes)
        facts = look.result()
    finally:
        progress.cancel()
        await asyncio.gather(look, return_exceptions=True)
    lost = await in_thread(lambda: settle(image, facts))
    facts = replace(facts, content_id=lost.content_id)
    poison.add_file(image, lost)
    data_plane.add(image, facts, merge(lost.runs))
    log.info(
        "image",
        image=image.name,
        path=str(image.path),
        pages=facts.page_count,
        data_pages=facts.data_pages,
        regions=len(image.region_pages),
        poisoned=lost.pages,
        content_id=f"{facts.content_id:016x}",
    )


async def read_all(
    images: Sequence[ImageFile], data_plane: DataPlane, poison: Poison, *, on_terminal: bool
) -> None:
    for image in images:
        await read_and_add(image, data_plane, poison, on_terminal=on_terminal)


def announce(ports: Ports, options: ServeOptions) -> None:
    addresses = {"data": str(ports.data), "control": str(ports.control.address)}
    if ports.metrics is not None:
        addresses["metrics"] = str(ports.metrics)
    log.info("serving", **addresses)
    options.ready.say(addresses)


# ------------------------------------------------------------------------------------------------------- stop


async def drain(ports: Ports, timeout_s: float) -> None:
    """Lets open calls end. Nothing is lost by one that does not: its client asks again, or elsewhere."""
    ports.data_plane.health(False)
    await ports.control.drain()
    ports.data_plane.drain()

    def open_calls() -> int:
        return ports.data_plane.open_calls() + ports.control.open_calls

    try:
        async with asyncio.timeout(timeout_s):
            while open_calls() > 0:
                await asyncio.sleep(DRAIN_LOOK_S)
    except TimeoutError:
        log.warning("drain_cut", open_calls=open_calls(), after_s=timeout_s)


@contextmanager
def stop_signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Set by the first SIGTERM or SIGINT, and by the second."""
    first, second = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield first, second
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def until(event: asyncio.Event, work: Awaitable[None], cut: Callable[[], None] = lambda: None) -> None:
    """Does the work, and gives it up when the event comes. What the work raises is raised here."""
    task, waiting = asyncio.ensure_future(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        else:
            cut()
    finally:
        for one in (task, waiting):
            one.cancel()
        await asyncio.wait({task, waiting})


async def serve(images: Sequence[ImageFile], options: ServeOptions) -> None:
    """Until SIGTERM or SIGINT; then until no guest that is handed over needs it, which nothing cuts short;
    then until the open calls are done, which a second signal does.

    PageferryError: a port is taken, an image cannot be read, or a signal came before all were.
    """
    options.ready.check()
    with stop_signals() as (first, second):
        async with AsyncExitStack() as stack:
            ports = await bring_up(options, stack)
            poison = ports.sessions.poison
            await until(first, read_all(images, ports.data_plane, poison, on_terminal=options.progress))
            if first.is_set():
                raise PageferryError(Reason.CANCELLED, "ended by a signal before all images were read")
            ports.data_plane.health(True)
            await ports.control.serving(True)
            announce(ports, options)
            await first.wait()
            await ports.sessions.end()
            log.info("draining", open_calls=ports.data_plane.open_calls(), timeout_s=options.drain_timeout_s)
            await until(
                second,
                drain(ports, options.drain_timeout_s),
                lambda: log.warning("drain_cut", because="a second signal"),
            )
    log.info("ended")

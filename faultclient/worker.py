# SPDX-License-Identifier: Apache-2.0
"""`faultclient run`: one hand-off, one session, until nobody needs us any more.

The order of starting is part of the design: the pager runs first, and only then is the control port's half
second of imports spent. Nothing at the head of this file may import grpc.
"""

import asyncio
import importlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faultclient.progress import show_progress
from faultclient.session import Postcopy, Session, follow
from faultclient.vms import Vm, Vms
from pageferry.host.handoff import Handoff, Listener
from pageferry.phases import IllegalStepError, Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.logs import log


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What config.py makes of flags and environment."""

    socket: Path
    data_address: str
    image: str
    session: str
    postcopy: Postcopy
    background: bool
    spin_us: int
    vmm_uids: frozenset[int]
    handoff_timeout_s: float | None
    attach_timeout_s: float
    control_listen: Address
    metrics_listen: Address | None
    ready_file: Path | None
    progress: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to, for the last line."""

    session: Session
    counters: dict[str, int]
    fault_p50_us: float
    fault_p99_us: float

    def as_json(self) -> str:
        figures: dict[str, Any] = {
            "session": self.session.name,
            "phase": self.session.phase.name,
            "reason": self.session.failure.name if self.session.failure is not None else None,
            "fault_p50_us": self.fault_p50_us,
            "fault_p99_us": self.fault_p99_us,
            **self.counters,
        }
        return json.dumps(figures)


async def wait_for_vmm(listener: Listener, options: RunOptions) -> Handoff:
    """The hand-off, taken on another thread: a VMM that dawdles may not hold up signals."""
    log.info("waiting", socket=str(listener.path))
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(listener.fileno(), readable.set)
    try:
        async with asyncio.timeout(options.handoff_timeout_s):
            await readable.wait()
    except TimeoutError as error:
        raise PageferryError(
            Reason.TOO_SLOW, f"no VMM has connected to {listener.path}", "start the VMM, or wait longer"
        ) from error
    finally:
        loop.remove_reader(listener.fileno())
    return await asyncio.to_thread(listener.accept, uids=options.vmm_uids, timeout_s=1.0)


async def give_up_unattached(session: Session, timeout_s: float) -> None:
    """A server that cannot be reached before anything depends on it is an error, not a pause."""
    try:
        async with asyncio.timeout(timeout_s):
            while not session.attached and not session.ended:
                await session.changed(session.revision)
    except TimeoutError:
        await session.cancel(
            session.paused or Reason.GOING_AWAY,
            session.message or f"the page server at {session.vm.data_address} has not answered",
        )


@contextmanager
def signals_end(session: Session) -> Iterator[None]:
    """SIGTERM and SIGINT give the session up, as long as the guest does not run here. Then nothing does: its
    memory is in two places, and without us it would stand still for ever."""
    loop = asyncio.get_running_loop()
    giving_up: set[asyncio.Task[None]] = set()

    async def give_up(name: str) -> None:
        try:
            await session.cancel(Reason.CANCELLED, f"ended by {name} before the guest ran")
        except IllegalStepError:
            log.warning("signal_ignored", signal=name, because="the guest runs here: it needs its pages")

    def on_signal(number: signal.Signals) -> None:
        task = loop.create_task(give_up(number.name))
        giving_up.add(task)
        task.add_done_callback(giving_up.discard)

    def on_trace() -> None:
        for line in session.vm.pager.trace():
            log.info("trace", session=session.name, step=line)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGUSR2, on_trace)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            loop.remove_signal_handler(number)


async def serve(session: Session, options: RunOptions) -> None:
    """Follows the session to its end, with the control port beside it."""
    async with asyncio.TaskGroup() as tasks:
        followed = tasks.create_task(follow(session))
        beside = [tasks.create_task(give_up_unattached(session, options.attach_timeout_s))]
        if options.progress:
            beside.append(tasks.create_task(show_progress(session)))
        server = await asyncio.to_thread(importlib.import_module, "faultclient.server")
        async with server.ControlServer([session], options.control_listen, options.metrics_listen) as control:
            announce(options, control.address)
            await followed
            for task in beside:
                task.cancel()


def announce(options: RunOptions, control_address: str) -> None:
    log.info("serving", session=options.session, control=control_address, data=options.data_address)
    if options.ready_file is not None:
        waiting = options.ready_file.with_suffix(".new")
        waiting.write_text(json.dumps({"pid": os.getpid(), "control": control_address}) + "\n")
        waiting.rename(options.ready_file)  # never seen half written


def outcome(session: Session, vm: Vm) -> Outcome:
    waits = vm.pager.histogram("fault_fetch_ns")
    return Outcome(
        session=session,
        counters=vm.pager.counters(),
        fault_p50_us=waits.quantile(0.5) / 1000,
        fault_p99_us=waits.quantile(0.99) / 1000,
    )


async def run(options: RunOptions) -> Outcome:
    """PageferryError: the session failed, and why."""
    with Vms() as vms, Listener(options.socket) as listener:
        handoff = await wait_for_vmm(listener, options)
        log.info("handoff", pid=handoff.pid, memory_bytes=handoff.length_bytes, shared=handoff.shared)
        vm = vms.take(
            handoff,
            image=options.image,
            data_address=options.data_address,
            background=options.background,
            spin_us=options.spin_us,
        )
        session = Session(name=options.session, vm=vm, postcopy=options.postcopy)
        session.start()
        with signals_end(session):
            await serve(session, options)
        result = outcome(session, vm)
    log.info("ended", session=session.name, phase=session.phase.name)
    failed = session.error()
    if failed is not None and session.phase is not Phase.COMMITTED:
        raise failed
    return result

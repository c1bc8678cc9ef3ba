# SPDX-License-Identifier: Apache-2.0
"""`faultclient run`: one hand-off, one session, until nobody needs us any more.

The order of starting is part of the design: the pager runs first, and only then is the control port's half
second of imports spent. Nothing at the head of this file may import grpc.

From the hand-off on the guest may run here, and then nothing but its own end and the last page may end the
pager: what can be refused is refused before, what fails beside it later is logged.
"""

import asyncio
import importlib
import json
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from faultclient.beside import beside
from faultclient.collapse import Collapse, when_complete
from faultclient.config import RunOptions
from faultclient.handoffs import check_role
from faultclient.progress import show_progress
from faultclient.restore import OneSession, Restore, follow, give_up_unattached
from faultclient.session import Postcopy, look_on, with_remedy
from faultclient.vms import Vms
from pageferry.host.handoff import Handoff
from pageferry.host.listener import Listener
from pageferry.reasons import PageferryError, Reason
from pageferry.service.abilities import check_arriving
from pageferry.service.addresses import try_listening
from pageferry.service.logs import log
from pageferry.service.taking import accepted, readable


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to, for the last line and the exit code."""

    figures: dict[str, Any]
    error: PageferryError | None

    @classmethod
    def of(cls, session: Restore, collapse: Collapse | None) -> "Outcome":
        pager = session.taken.pager
        waits = pager.histogram("fault_fetch_ns")
        figures: dict[str, Any] = {
            "session": session.name,
            "phase": session.phase.name,
            "reason": session.failure.name if session.failure is not None else None,
            "fault_p50_us": waits.quantile(0.5) / 1000,
            "fault_p99_us": waits.quantile(0.99) / 1000,
            **pager.counters(),
        }
        if collapse is not None:
            figures["collapsed"] = asdict(collapse.done) if collapse.done is not None else None
        return cls(figures, session.error())

    def as_json(self) -> str:
        return json.dumps(self.figures)


# ---------------------------------------------------------------------------------------------------- signals


class Signals:
    """SIGTERM and SIGINT give up as long as the guest does not run here. Then nothing does: its memory is in
    two places, and without us it would stand still for ever. SIGUSR2 shows the pager's last steps."""

    def __init__(self) -> None:
        self._waiting: asyncio.Task[Handoff] | None = None
        self._session: Restore | None = None
        self._collapse: Collapse | None = None
        self._ended_by: str | None = None

    async def or_given_up(self, waiting: Coroutine[Any, Any, Handoff]) -> Handoff:
        """What is waited for. PageferryError: a signal came before."""
        self._waiting = asyncio.get_running_loop().create_task(waiting)
        try:
            return await self._waiting
        except asyncio.CancelledError:
            if self._ended_by is None:
                raise
            raise PageferryError(
                Reason.CANCELLED, f"ended by {self._ended_by} before a VMM came", "start it again"
            ) from None

    def concern(self, session: Restore, collapse: Collapse | None) -> None:
        self._session = session
        self._collapse = collapse

    def _on_end(self, number: signal.Signals) -> None:
        if self._session is not None:
            if self._collapse is not None:  # nobody depends on that
                self._collapse.give_up()
            if not self._session.cancel(Reason.CANCELLED, f"ended by {number.name} before the guest ran"):
                log.warning(
                    "signal_ignored", signal=number.name, because="the guest runs here: it needs its pages"
                )
        else:
            self._ended_by = number.name
            if self._waiting is not None:
                self._waiting.cancel()

    def _on_trace(self) -> None:
        if self._session is not None:
            self._session.log_trace()

    @contextmanager
    def caught(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end, number)
        loop.add_signal_handler(signal.SIGUSR2, self._on_trace)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
                loop.remove_signal_handler(number)


# ------------------------------------------------------------------------------------------- before the guest


def check(options: RunOptions) -> None:
    """What would only fail when a guest depends on us. PageferryError: it would."""
    options.ready.check()
    check_arriving(filled_before=options.postcopy is Postcopy.FORBID)
    for address in (options.control_listen, options.metrics_listen):
        if address is not None:
            try_listening(address)


async def wait_for_vmm(options: RunOptions) -> Handoff:
    """The hand-off of the first VMM that comes."""
    with Listener(options.socket, vmm_uid=options.vmm_uid) as listener:
        log.info("waiting", socket=str(listener.path))
        try:
            async with asyncio.timeout(options.handoff_timeout_s):
                await readable(listener)
        except TimeoutError as error:
            raise PageferryError(
                Reason.TOO_SLOW, f"no VMM has connected to {listener.path}", "start the VMM, or wait longer"
            ) from error
        return await accepted(listener)


def take_over(vms: Vms, handoff: Handoff, options: RunOptions) -> Restore:
    """The pager runs from here on. PageferryError: what was handed over cannot be served."""
    with handoff:  # closed, unless the pager has it
        check_role(handoff)
        if options.postcopy is Postcopy.FORBID and not handoff.shared:
            raise PageferryError(
                Reason.UNSUPPORTED,
                "private memory cannot be filled before the guest runs",
                "leave --postcopy at at-once, or put the VM's RAM on a memfd or a tmpfs",
            )
        try:
            vm = vms.take(
                handoff,
                image=options.image,
                data_address=options.data_address,
                background=options.background,
                spin_us=options.spin_us,
                huge_pages=options.collapse,
                keep_registration=options.keep_registration,
                layout=options.layout,
            )
        except PageferryError as error:
            raise with_remedy(error) from error
    session = Restore.of(options.session, vm, options.postcopy)
    session.start()
    return session


# ---------------------------------------------------------------------------------------------- while it runs


async def control(session: Restore, options: RunOptions) -> None:
    """The control port, until the session has ended."""
    server = await asyncio.to_thread(importlib.import_module, "faultclient.server")
    if session.ended:
        return
    book, pager = OneSession(session), session.taken.pager
    async with server.ControlServer(book, options.control_listen, options.metrics_listen, pager) as up:
        log.info("serving", session=session.name, data=options.data_address, **up.addresses)
        options.ready.say(up.addresses)
        await session.over()


async def serve(session: Restore, options: RunOptions, collapse: Collapse | None) -> None:
    """Follows the session to its end; huge pages may take longer than that."""
    async with asyncio.TaskGroup() as tasks:
        followed = tasks.create_task(follow(session))
        tasks.create_task(give_up_unattached(session, options.attach_timeout_s))
        tasks.create_task(beside("arrivals", look_on(session)))
        tasks.create_task(beside("control port", control(session, options)))
        if collapse is not None:
            tasks.create_task(beside("huge pages", when_complete(session, collapse)))
        if options.progress:
            tasks.create_task(beside("progress", show_progress(session)))
        await followed


async def run(options: RunOptions) -> Outcome:
    """PageferryError: no session began, and why."""
    check(options)
    signals = Signals()
    with Vms() as vms, signals.caught():
        handoff = await signals.or_given_up(wait_for_vmm(options))
        log.info("handoff", pid=handoff.pid, memory_bytes=handoff.length_bytes, shared=handoff.shared)
        session = take_over(vms, handoff, options)
        collapse = Collapse(session.taken.pager, session.name) if options.collapse else None
        signals.concern(session, collapse)
        await serve(session, options, collapse)
        result = Outcome.of(session, collapse)
    log.info("ended", session=session.name, phase=session.phase.name)
    return result

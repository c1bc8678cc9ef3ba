# SPDX-License-Identifier: Apache-2.0
"""`faultclient migrate`: one move from one place. Makes the token, the session at both ends, and watches.

It only asks and watches: if it is killed, the move goes on without it. Ctrl-C asks to cancel, and waits for
what comes of that.
"""

import asyncio
import hashlib
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from faultclient.commands.control import Control, fault_client, page_server
from faultclient.commands.moving import MigrateOptions, Moving, Sample
from faultclient.service import POSTCOPY
from faultclient.vms import Ticket
from pageferry.limits import TOKEN_BYTES
from pageferry.phases import ENDS
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageferry.v1 import faultclient_pb2, migrations_pb2

# Once one end has come to its own: the other has to hear of it, and may have to ask again.
OTHER_END_S: Final = 60.0
POSTCOPY_BY_WORD: Final = {meaning.value: word for word, meaning in POSTCOPY.items() if word}


class View(Protocol):
    """Who shows it: lines of JSON, lines of text, or a live view."""

    def started(self, moving: Moving) -> None: ...
    def sampled(self, moving: Moving, sample: Sample) -> None: ...
    def said(self, text: str) -> None: ...
    def ended(self, moving: Moving, error: PageferryError | None) -> None: ...


async def migrate(options: MigrateOptions, view: View) -> PageferryError | None:
    """Why the guest is not where it was to go, all of it; None if it is."""
    return await Migration(options, view).run()


class Migration:
    """Made in the loop that runs it: channels belong to one."""

    def __init__(self, options: MigrateOptions, view: View) -> None:
        self.moving = Moving(options)
        self._options = options
        self._view = view
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._source = page_server(options.source)
        self._target = fault_client(options.target)
        self._changed = asyncio.Event()
        self._silent: set[str] = set()  # whose end refuses to be watched
        self._interrupts = 0
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self) -> PageferryError | None:
        self._view.started(self.moving)
        try:
            with self._interruptible():
                await self._begin()
                await self._watch()
            error = self.moving.error()
        except PageferryError as refusal:
            error = refusal
        except asyncio.CancelledError:
            error = PageferryError(Reason.CANCELLED, "no longer watched", "`faultclient status` tells more")
        finally:
            await self._source.close()
            await self._target.close()
        self._view.ended(self.moving, error)
        return error

    # ---------------------------------------------------------------------------------------------- the calls

    async def _begin(self) -> None:
        options = self._options
        session = await self._source.ask(
            "CreateSession",
            migrations_pb2.CreateSessionRequest(
                session=options.session,
                image=options.image,
                token_sha256=hashlib.sha256(self._token).digest(),
            ),
        )
        self._take("source", session)
        request = faultclient_pb2.StartSessionRequest(
            session=options.session,
            image=options.image,
            vm=options.vm,
            data_address=options.data_address,
            control_address=options.source_for_target,
            postcopy=POSTCOPY_BY_WORD[options.postcopy],
            max_downtime_ms=options.max_downtime_ms,
            bandwidth_per_migration=options.bandwidth_bytes_per_s,
            rounds_max=options.rounds_max,
        )
        bearer = Ticket(options.session, self._token, 0, 0).authorization
        try:
            self._take("target", await self._target.ask("StartSession", request, [("authorization", bearer)]))
        except PageferryError:
            await self._take_back()
            raise

    async def _take_back(self) -> None:
        """Nobody will come for the session at the source."""
        try:
            request = migrations_pb2.EndSessionRequest(session=self._options.session)
            self._take("source", await self._source.ask("CancelSession", request))
        except PageferryError as error:
            log.warning("not_cancelled", session=self._options.session, text=str(error))

    # --------------------------------------------------------------------------------------------- watching

    async def _watch(self) -> None:
        """Until both ends have come to theirs, or one has and the other says nothing of it."""
        async with asyncio.TaskGroup() as tasks:
            watching = [
                tasks.create_task(self._follow("source", self._source)),
                tasks.create_task(self._follow("target", self._target)),
            ]
            while not all(self._ended(side) for side in ("source", "target")):
                self._changed.clear()
                one_has = self._ended("source") or self._ended("target")
                try:
                    async with asyncio.timeout(OTHER_END_S if one_has else None):
                        await self._changed.wait()
                except TimeoutError:
                    self._view.said(f"nothing more was heard for {OTHER_END_S:g} s")
                    break
            for task in watching:
                task.cancel()
        await self._last_figures()

    async def _follow(self, side: str, control: Control) -> None:
        try:
            async for session in control.watch(self._options.session):
                self._take(side, session)
        except PageferryError as error:
            self._view.said(f"the {side} is no longer heard of: {error}")
            self._silent.add(side)
            self._changed.set()

    def _take(self, side: str, session: migrations_pb2.Session) -> None:
        self._view.sampled(self.moving, self.moving.take(side, session))
        self._changed.set()

    def _ended(self, side: str) -> bool:
        return side in self._silent or self.moving.phase(side) in ENDS

    async def _last_figures(self) -> None:
        """What a report draws beside the samples; without it, it is not drawn."""
        name = migrations_pb2.SessionName(session=self._options.session)
        with suppress(PageferryError):
            self.moving.arrivals = await self._target.ask("GetArrivals", name)

    # -------------------------------------------------------------------------------------------- an operator

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask to cancel; a third time we no longer wait for what comes of it."""
        loop = asyncio.get_running_loop()
        watching = asyncio.current_task()
        assert watching is not None

        def interrupted() -> None:
            self._interrupts += 1
            if self._interrupts > 2:
                watching.cancel()
            elif self._cancelling is None or self._cancelling.done():
                self._view.said("asking the target to cancel")
                self._cancelling = loop.create_task(self._cancel())

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _cancel(self) -> None:
        request = migrations_pb2.EndSessionRequest(session=self._options.session)
        try:
            self._take("target", await self._target.ask("CancelSession", request))
        except PageferryError as error:
            self._view.said(f"it goes on: {error}")

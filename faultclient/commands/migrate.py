# SPDX-License-Identifier: Apache-2.0
"""`faultclient migrate`: one move from one place. Makes the token, the session at both ends, and watches.

It only asks and watches: if it is killed, the move goes on without it, and whoever calls it again with the
session's name watches that move: the token is the target's by then. It is needed a second time by a fault
client that was restarted, to tell the source that the move is over. Ctrl-C asks to cancel, and waits for what
comes of that.
"""

import asyncio
import hashlib
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from faultclient.commands.control import Control, fault_client, page_server
from faultclient.commands.moving import SIDES, Moving
from faultclient.commands.report import write_report
from faultclient.commands.views import View
from faultclient.migrate_config import MigrateOptions
from faultclient.service import POSTCOPY
from faultclient.vms import Ticket
from pageferry.limits import TOKEN_BYTES
from pageferry.phases import ENDS, Phase
from pageferry.reasons import PageferryError, Reason, Remedy
from pageferry.v1 import faultclient_pb2, migrations_pb2

# Once one end has come to its own: the other has to hear of it, and may have to ask again.
OTHER_END_S: Final = 60.0
# Of Ctrl-C: from this one on we no longer wait for what comes of it.
INTERRUPTS_MAX: Final = 3
POSTCOPY_BY_WORD: Final = {meaning.value: word for word, meaning in POSTCOPY.items() if word}


async def migrate(options: MigrateOptions, view: View) -> PageferryError | None:
    """Why the guest is not where it was to go, all of it; None if it is."""
    migration = Migration(options, view)
    error = await migration.run()
    if options.report is not None:
        try:
            write_report(options.report, migration.moving, error)
        except OSError as refusal:  # the move is what it is
            print(f"the report is not written: {refusal}", file=sys.stderr, flush=True)
    return error


class Migration:
    """Made in the loop that runs it: channels belong to one."""

    def __init__(self, options: MigrateOptions, view: View, *, other_end_s: float = OTHER_END_S) -> None:
        self.moving = Moving(options)
        self._options = options
        self._view = view
        self._other_end_s = other_end_s
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._source = page_server(options.source)
        self._target = fault_client(options.target)
        self._changed = asyncio.Event()
        self._refused: set[str] = set()  # whose end will not be watched
        self._started = False  # the target drives it, or an earlier call has made it do so
        self._interrupts = 0
        self._cancelling: asyncio.Task[None] | None = None

    async def run(self) -> PageferryError | None:
        self._view.started(self.moving)
        try:
            error = await self._run()
            self.moving.end()
            self._view.ended(self.moving, error)
        finally:
            self._view.close()
            if self._cancelling is not None:
                self._cancelling.cancel()
            await self._source.close()
            await self._target.close()
        return error

    async def _run(self) -> PageferryError | None:
        try:
            with self._interruptible():
                await self._begin()
                await self._watch()
        except PageferryError as refusal:
            return refusal
        except asyncio.CancelledError:
            if self._interrupts < INTERRUPTS_MAX:
                raise
            return PageferryError(Reason.CANCELLED, "no longer watched", "`faultclient top` tells more")
        return self.moving.error()

    def _say(self, text: str) -> None:
        self.moving.notes.append((self.moving.now_s(), text))
        self._view.said(text)

    # ---------------------------------------------------------------------------------------------- the calls

    async def _begin(self) -> None:
        if await self._under_way():
            self._started = self.moving.watched_only = True
            self._say("it was started before: it is watched, and its options are those of then")
        else:
            await self._create()
            await self._start()
        if self._interrupts:
            self._ask_to_cancel()

    async def _under_way(self) -> bool:
        """Has the target such a session? Asked before anything is made, so a target that is not there is
        told before, too."""
        name = migrations_pb2.SessionName(session=self._options.session)
        try:
            session = await self._target.ask("GetSession", name)
        except PageferryError as error:
            if error.reason is Reason.NO_SUCH_IMAGE:
                return False
            raise
        if session.image != self._options.image:
            raise PageferryError(
                Reason.ALREADY_ATTACHED,
                f"session {self._options.session} moves {session.image}, not {self._options.image}",
                "give this move another --session",
            )
        self._take("target", session)
        return True

    async def _create(self) -> None:
        request = migrations_pb2.CreateSessionRequest(
            session=self._options.session,
            image=self._options.image,
            token_sha256=hashlib.sha256(self._token).digest(),
        )
        self._take("source", await self._source.ask("CreateSession", request))
        if self._interrupts:
            await self._take_back()
            raise PageferryError(Reason.CANCELLED, "it was cancelled before it had begun")

    async def _start(self) -> None:
        try:
            await self._ask_to_start()
        except PageferryError:
            await self._take_back()
            raise
        self._started = True

    async def _ask_to_start(self) -> None:
        options = self._options
        request = faultclient_pb2.StartSessionRequest(
            session=options.session,
            image=options.image,
            vm=options.vm,
            data_address=options.data_address,
            control_address=options.source_for_target,
            postcopy=POSTCOPY_BY_WORD[options.postcopy],
            manual_switchover=options.manual_switchover,
            max_downtime_ms=options.max_downtime_ms,
            bandwidth_per_migration=options.bandwidth_bytes_per_s,
            completion_timeout_per_gib_s=options.completion_timeout_per_gib_s,
            progress_timeout_s=options.progress_timeout_s,
            rounds_max=options.rounds_max,
        )
        bearer = Ticket(options.session, self._token, 0, 0).authorization
        self._take("target", await self._target.ask("StartSession", request, [("authorization", bearer)]))

    async def _take_back(self) -> None:
        """Nobody will come for the session at the source."""
        try:
            self._take("source", await self._source.ask("CancelSession", self._end_request()))
        except PageferryError as error:
            self._say(f"the session at the source could not be taken back: {error}")

    def _end_request(self) -> migrations_pb2.EndSessionRequest:
        return migrations_pb2.EndSessionRequest(session=self._options.session)

    async def _tell_source(self, phase: Phase | None) -> None:
        """The target has given up. A source that knows no target yet hears it from us, any other from its
        target alone: a fault client that was restarted has no token for that, until it is asked again."""
        if phase is Phase.CREATED:
            await self._take_back()
        elif phase in (Phase.PRECOPY, Phase.SWITCHOVER) and not self.moving.watched_only:
            try:
                await self._ask_to_start()
            except PageferryError as error:
                self._say(f"the source has not heard that the target has given up: {error}")

    # --------------------------------------------------------------------------------------------- watching

    async def _watch(self) -> None:
        """Until both ends have come to theirs, or one has and the other says nothing of it."""
        async with asyncio.TaskGroup() as tasks:
            watching = [
                tasks.create_task(self._follow("source", self._source)),
                tasks.create_task(self._follow("target", self._target)),
            ]
            told: set[Phase | None] = set()
            while not all(self._ended(side) for side in SIDES):
                at_source = self.moving.phase("source")
                if self.moving.phase("target") is Phase.ABORTED and at_source not in told:
                    told.add(at_source)
                    await self._tell_source(at_source)
                    continue
                self._changed.clear()
                one_has = any(self._ended(side) for side in SIDES)
                try:
                    async with asyncio.timeout(self._other_end_s if one_has else None):
                        await self._changed.wait()
                except TimeoutError:
                    self._say(f"nothing more was heard for {self._other_end_s:g} s")
                    break
            for task in watching:
                task.cancel()
        await self._last_figures()

    async def _follow(self, side: str, control: Control) -> None:
        def silent(error: PageferryError) -> None:
            if side not in self.moving.silent:
                self.moving.silent[side] = error
                self._say(f"the {side} does not answer: {error.message}")

        try:
            async for session in control.watch(self._options.session, silent):
                if self.moving.silent.pop(side, None) is not None:
                    self._say(f"the {side} answers again")
                self._take(side, session)
        except PageferryError as error:
            self._say(f"the {side} is no longer heard of: {error}")
            self._refused.add(side)
            self._changed.set()

    def _take(self, side: str, session: migrations_pb2.Session) -> None:
        self._view.sampled(self.moving, self.moving.take(side, session))
        self._changed.set()

    def _ended(self, side: str) -> bool:
        return side in self._refused or self.moving.phase(side) in ENDS

    async def _last_figures(self) -> None:
        """What a report draws beside the samples; without it, it is not drawn."""
        name = migrations_pb2.SessionName(session=self._options.session)
        with suppress(PageferryError):
            self.moving.arrivals = await self._target.ask("GetArrivals", name)

    # -------------------------------------------------------------------------------------------- an operator

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask to cancel."""
        loop = asyncio.get_running_loop()
        watching = asyncio.current_task()
        assert watching is not None

        def interrupted() -> None:
            self._interrupts += 1
            if self._interrupts >= INTERRUPTS_MAX:
                watching.cancel()
            elif self._started:
                self._ask_to_cancel()
            else:
                self._say("it will be cancelled as soon as it has begun")

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _ask_to_cancel(self) -> None:
        if self._cancelling is None or self._cancelling.done():
            self._say("asking the target to cancel")
            self._cancelling = asyncio.get_running_loop().create_task(self._cancel())

    async def _cancel(self) -> None:
        """The source passes it on if the target is out of reach from here. What comes of it both ends tell
        whoever watches them, in its order."""
        try:
            await self._target.ask("CancelSession", self._end_request())
            return
        except PageferryError as error:
            self._say(f"it goes on: {error}")
            if error.row.client is not Remedy.RETRY:
                return
        self._say("asking the source to cancel")
        try:
            await self._source.ask("CancelSession", self._end_request())
        except PageferryError as error:
            self._say(f"it goes on: {error}")

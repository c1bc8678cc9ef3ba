# SPDX-License-Identifier: Apache-2.0
"""Both ends of a move as an operator's command meets them: control ports on unix sockets, whose sessions do
what the test says. Whatever is asked of either goes into one `story`.

    async with Ends(folder) as ends:
        ends.when("target StartSession", lambda: ends.target.change(phase=PRECOPY))
        error = await ends.migrate(view)
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import grpc

from faultclient.commands.migrate import Migration
from faultclient.commands.views import View
from faultclient.migrate_config import MigrateOptions
from pageferry.phases import ENDS, Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.serving import ControlPort
from pageferry.v1 import (
    faultclient_pb2,
    faultclient_pb2_grpc,
    migrations_pb2,
    migrations_pb2_grpc,
)

PAGES = 1000
Session = migrations_pb2.Session
Context = Any


class End:
    """One end's sessions, and the calls that both kinds of end have."""

    def __init__(self, side: str, path: Path, story: list[str]) -> None:
        self.side = side
        self.address = f"unix:{path}"
        self.story = story
        self.sessions: dict[str, Session] = {}
        self.refuses: dict[str, list[PageferryError]] = {}  # by call: the errors before it is answered
        self.cues: dict[str, Callable[[], object]] = {}  # by what stands in the story: done once
        self.hangs: set[str] = set()  # these calls are never answered
        self.metadata: dict[str, str] = {}  # of the newest StartSession
        self.requests: dict[str, Any] = {}  # the newest of each call
        self._news = asyncio.Event()
        self._stack = AsyncExitStack()

    # ----------------------------------------------------------------------------------- what the test does

    def change(self, name: str = "move-1", **fields: Any) -> None:
        """Each change is told at once."""
        session = self.sessions[name]
        session.MergeFrom(Session(**fields))
        if fields.get("paused") == 0:
            session.ClearField("paused")
        session.revision += 1
        self._tell()

    def end(self, phase: Phase, reason: Reason, message: str, name: str = "move-1") -> None:
        self.change(name, phase=int(phase), failure=int(reason), message=message)

    def phase(self, name: str = "move-1") -> Phase:
        return Phase(int(self.sessions[name].phase))

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def up(self) -> None:
        port = ControlPort(Address.parse(self.address), self._add, (self._name,), grace_s=0.0)
        await self._stack.enter_async_context(port)

    async def down(self) -> None:
        await self._stack.aclose()

    _name = ""

    def _add(self, server: grpc.aio.Server) -> None:
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------- its calls

    async def _asked(self, call: str, request: Any = None) -> None:
        self.requests[call] = request
        self.story.append(f"{self.side} {call}")
        cue = self.cues.pop(f"{self.side} {call}", None)
        if cue is not None:
            cue()
        if call in self.hangs:
            await asyncio.get_running_loop().create_future()
        waiting = self.refuses.get(call, [])
        if waiting:
            raise waiting.pop(0)

    def _named(self, name: str) -> Session:
        if name not in self.sessions:
            raise PageferryError(Reason.NO_SUCH_IMAGE, f"there is no session {name!r} here")
        return self.sessions[name]

    def begin(self, name: str, image: str, **fields: Any) -> Session:
        session = Session(
            session=name, image=image, phase="PHASE_CREATED", revision=1, pages_total=PAGES, **fields
        )
        self.sessions[name] = session
        self._tell()
        return session

    async def GetSession(self, request: migrations_pb2.SessionName, context: Context) -> Session:
        await self._asked("GetSession")
        return self._named(request.session)

    async def CancelSession(self, request: migrations_pb2.EndSessionRequest, context: Context) -> Session:
        await self._asked("CancelSession", request)
        session = self._named(request.session)
        if Phase(int(session.phase)) not in (Phase.CREATED, Phase.PRECOPY, Phase.SWITCHOVER, Phase.ABORTED):
            raise PageferryError(Reason.WRONG_PHASE, "its guest's memory is in two places")
        self.end(Phase.ABORTED, Reason.CANCELLED, "it was cancelled", request.session)
        return session

    def _over(self, session: Session, told: dict[str, int]) -> bool:
        return Phase(int(session.phase)) in ENDS and told[session.session] == session.revision

    async def WatchSessions(
        self, request: migrations_pb2.WatchSessionsRequest, context: Context
    ) -> AsyncIterator[Session]:
        await self._asked("WatchSessions")
        told: dict[str, int] = {}
        while True:
            news = self._news
            matches = [self._named(request.session)] if request.session else list(self.sessions.values())
            for session in matches:
                if told.get(session.session) != session.revision:
                    told[session.session] = session.revision
                    yield session
            if request.once or (request.session and self._over(matches[0], told)):
                return
            await news.wait()


class Source(End, migrations_pb2_grpc.MigrationServiceServicer):
    """A page server's control port."""

    _name = migrations_pb2.DESCRIPTOR.services_by_name["MigrationService"].full_name

    def _add(self, server: grpc.aio.Server) -> None:
        migrations_pb2_grpc.add_MigrationServiceServicer_to_server(self, server)

    async def CreateSession(self, request: migrations_pb2.CreateSessionRequest, context: Context) -> Session:
        await self._asked("CreateSession", request)
        return self.begin(request.session, request.image, machine="qemu 7.2.22, pc-i440fx-7.2")

    async def ReleaseSession(self, request: migrations_pb2.EndSessionRequest, context: Context) -> Session:
        await self._asked("ReleaseSession", request)
        self.change(request.session, phase=int(Phase.RELEASED))
        return self._named(request.session)


class Target(End, faultclient_pb2_grpc.FaultClientServiceServicer):
    """A fault client's."""

    _name = faultclient_pb2.DESCRIPTOR.services_by_name["FaultClientService"].full_name
    arrivals = faultclient_pb2.Arrivals()

    def _add(self, server: grpc.aio.Server) -> None:
        faultclient_pb2_grpc.add_FaultClientServiceServicer_to_server(self, server)

    async def StartSession(self, request: faultclient_pb2.StartSessionRequest, context: Context) -> Session:
        self.metadata = {key: str(value) for key, value in context.invocation_metadata()}
        known = request.session in self.sessions
        if not known:
            self.begin(request.session, request.image, peer=request.data_address)
        try:
            await self._asked("StartSession", request)
        except PageferryError:
            if not known:
                del self.sessions[request.session]
            raise
        return self._named(request.session)

    async def SwitchOver(self, request: migrations_pb2.SessionName, context: Context) -> Session:
        await self._asked("SwitchOver", request)
        self.change(request.session, phase=int(Phase.SWITCHOVER))
        return self._named(request.session)

    async def GetArrivals(
        self, request: migrations_pb2.SessionName, context: Context
    ) -> faultclient_pb2.Arrivals:
        await self._asked("GetArrivals")
        self._named(request.session)
        return self.arrivals


class Ends:
    """Both are up while its `async with` lasts."""

    def __init__(self, folder: Path) -> None:
        self.story: list[str] = []
        self.source = Source("source", folder / "source.sock", self.story)
        self.target = Target("target", folder / "target.sock", self.story)
        self.migration: Migration | None = None

    def when(self, asked: str, do: Callable[[], object]) -> None:
        """Once, as soon as this is asked: "target StartSession"."""
        (self.source if asked.startswith("source") else self.target).cues[asked] = do

    def options(self, **given: object) -> MigrateOptions:
        """As the command line makes them."""
        defaults: dict[str, Any] = {
            "source": self.source.address,
            "target": self.target.address,
            "source_for_target": None,
            "data_address": "127.0.0.1:7850",
            "image": None,
            "vm": "web-1",
            "session": "move-1",
            "postcopy": "allow",
            "manual_switchover": False,
            "max_downtime_ms": 900,
            "bandwidth": None,
            "rounds_max": 30,
            "completion_timeout_per_gib": 150,
            "progress_timeout": 150,
            "report": None,
        }
        return MigrateOptions.of(defaults | given)

    async def migrate(
        self, view: View, *, other_end_s: float = 60.0, **given: object
    ) -> PageferryError | None:
        self.migration = Migration(self.options(**given), view, other_end_s=other_end_s)
        return await self.migration.run()

    def goes_well(self) -> None:
        """All phases at both ends, one after another: to be done at StartSession."""
        both = (self.source, self.target)
        for phase in (Phase.PRECOPY, Phase.SWITCHOVER, Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED):
            for end in both:
                end.change(phase=int(phase))
        self.target.change(pages_settled=PAGES, wire_bytes=5 << 20, downtime_us=42_100, blocktime_us=9_000)
        self.target.change(faults=77, round=3)

    async def __aenter__(self) -> Self:
        await self.source.up()
        await self.target.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.source.down()
        await self.target.down()

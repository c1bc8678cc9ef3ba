# SPDX-License-Identifier: Apache-2.0
"""Both services of a move, started once for many moves; a session as an orchestrator sees it from both ends;
and the two VMs of one test.

    with Pair(folder) as pair:
        with Vms(pair, saved) as vms:
            gate = vms.there.before("load_state")
            move = Move(pair, postcopy="at-once")
            gate.wait()
            assert move.phase(Side.SOURCE) is Phase.SWITCHOVER

What goes between the ends passes two proxies, `pair.data` and `pair.control`; the test itself does not.
"""

import hashlib
import itertools
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import grpc

from faultclient.service import POSTCOPY
from faultclient.vms import Ticket
from pageferry.phases import ENDS, Phase, Side
from pageferry.reasons import Reason
from pageferry.v1 import faultclient_pb2, faultclient_pb2_grpc, migrations_pb2, migrations_pb2_grpc
from tests.support.footprint import unchanged
from tests.support.move_adapter import Orchestrator
from tests.support.move_guests import LIGHT, Guests, check_at_target, monitor, running, waiting
from tests.support.processes import PATIENCE_S, POLL_S, Process, command
from tests.support.proxy import Proxy, Span
from tests.support.qemu import Qemu
from tests.support.ramfile import run_folder
from tests.support.shape import SavedGuest

VM: Final = "guest"
CALL_S: Final = 10.0
LOG_BYTES: Final = 4000
POSTCOPY_BY_WORD: Final = {meaning.value: word for word, meaning in POSTCOPY.items() if word}
SOURCE, TARGET = Side.SOURCE, Side.TARGET


class ControlProxy(Proxy):
    """`deaf`: what the source answers is lost, and it hears everything. Of no use is such a connection."""

    deaf = False

    def _changed(self, data: bytes, pages: list[Span]) -> bytes:
        return b"" if self.deaf else super()._changed(data, pages)


class Pair:
    """`pageserver serve` and `faultclient serve`, each told of one VM whose owner is an orchestrator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = ExitStack()
        self._numbers = itertools.count(1)
        try:
            self.server = self.serve()
            self.client = self.take()
            self.data = self.stack.enter_context(Proxy(self.server.ready["data"]))
            self.control = self.stack.enter_context(ControlProxy(self.server.ready["control"]))
            self._stubs = {
                SOURCE: self._stub(self.server, migrations_pb2_grpc.MigrationServiceStub),
                TARGET: self._stub(self.client, faultclient_pb2_grpc.FaultClientServiceStub),
            }
        except BaseException:
            self.close()
            raise

    def serve(self) -> Process:
        """A page server, the first one or the next."""
        ports = ("--data-listen=127.0.0.1:0", "--control-listen=127.0.0.1:0")
        return self._start("pageserver", "source", *ports)

    def take(self) -> Process:
        """A fault client, the first one or the next."""
        return self._start("faultclient", "target", f"--control-listen=unix:{self.folder}/control.sock")

    def take_again(self) -> None:
        self.client = self.take()
        self._stubs[TARGET] = self._stub(self.client, faultclient_pb2_grpc.FaultClientServiceStub)

    def serve_again(self) -> None:
        """The next page server, and the proxies and calls lead to it."""
        self.server = self.serve()
        self.data.target = self.server.ready["data"]
        self.control.target = self.server.ready["control"]
        self._stubs[SOURCE] = self._stub(self.server, migrations_pb2_grpc.MigrationServiceStub)

    def _start(self, name: str, role: str, *options: str) -> Process:
        vm = f"--vm={VM},handoff={self.handoff(role)},socket={self.adapter(role)}"
        state = f"--state-dir={self.folder / role}-state"
        arguments = [*command(name, "serve"), vm, state, *options]
        return self.stack.enter_context(Process(arguments, folder=self.folder, ready=True))

    def _stub(self, process: Process, stub: Callable[[grpc.Channel], Any]) -> Any:
        return stub(self.stack.enter_context(grpc.insecure_channel(process.ready["control"])))

    def new_folder(self, role: str) -> Path:
        """A name, for a VM of this role."""
        return self.folder / f"{next(self._numbers)}-{role}"

    def handoff(self, role: str) -> Path:
        return self.folder / f"{role}.sock"

    def adapter(self, role: str) -> Path:
        return self.folder / f"{role}.adapter"

    def ask(self, side: Side, method: str, request: Any, metadata: Sequence[tuple[str, str]] = ()) -> Any:
        return getattr(self._stubs[side], method)(request, metadata=tuple(metadata), timeout=CALL_S)

    def unended(self) -> list[str]:
        """Sessions, of either end."""
        everything = migrations_pb2.WatchSessionsRequest(once=True)
        told = [one for side in Side for one in self.ask(side, "WatchSessions", everything)]
        return [one.session for one in told if Phase(one.phase) not in ENDS]

    def logs(self) -> str:
        return "\n".join(f"{one.log[-LOG_BYTES:]}" for one in (self.server, self.client))

    def close(self) -> None:
        self.stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Vms:
    """The VMs of one test and their owners: a guest that beats at the source, a VMM that waits at the target.
    Gone at the end, whatever they are in."""

    def __init__(
        self,
        pair: Pair,
        saved: SavedGuest,
        *,
        at_source: Mapping[str, Any] | None = None,
        at_target: Mapping[str, Any] | None = None,
    ) -> None:
        """The last two: more for running() and waiting()."""
        source = pair.new_folder("source")
        self._shape = saved.shape
        self._stack = ExitStack()
        try:
            self.here = self._stack.enter_context(Orchestrator(pair.adapter("source"), monitor(source)))
            self.target, self.there = self._wait_at_target(self._stack, pair, **(at_target or {}))
            self.source = running(self._stack, saved, source, pair.handoff("source"), **(at_source or {}))
        except BaseException:
            self._stack.close()
            raise

    def _wait_at_target(self, stack: ExitStack, pair: Pair, **options: Any) -> tuple[Qemu, Orchestrator]:
        folder = pair.new_folder("target")
        owner = stack.enter_context(Orchestrator(pair.adapter("target"), monitor(folder)))
        return waiting(stack, self._shape, folder, pair.handoff("target"), **options), owner

    @contextmanager
    def another_target(self, pair: Pair, **options: Any) -> Iterator[Qemu]:
        """After the first one is gone. Not under a gate of the first one's owner any more."""
        self.there.close()
        with ExitStack() as stack:
            yield self._wait_at_target(stack, pair, **options)[0]

    def wait_killed(self, vm: Qemu) -> None:
        """Whoever gave it up has killed it."""
        deadline = time.monotonic() + PATIENCE_S
        while vm.exit_status() is None:
            assert time.monotonic() < deadline, "it was not killed"
            time.sleep(POLL_S)
        assert vm.exit_status() == -signal.SIGKILL

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pairs:
    """The pair that all tests share. One that a test leaves in disorder is no test's any more."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self._stack = ExitStack()
        self._pair: Pair | None = None

    @contextmanager
    def unchanged(self) -> Iterator[Pair]:
        """It holds no more when this is left than when it was entered."""
        pair = self._pair or self._stack.enter_context(Pair(self._stack.enter_context(run_folder())))
        try:
            if self._pair is None:
                self._warm_up(pair)
            with unchanged(pair.server.pid, pair.client.pid):
                yield pair
            assert not pair.unended(), "a session has not ended"
        except BaseException as error:
            self._pair = None
            error.add_note(pair.logs())
            pair.close()
            raise
        self._pair = pair

    def _warm_up(self, pair: Pair) -> None:
        """What is made only once is there after a first move."""
        with Vms(pair, self._guests.saved(LIGHT)) as vms:
            Move(pair).wait_ends(Phase.RELEASED, Phase.RELEASED)
            check_at_target(vms.source, vms.target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Session:
    """One that somebody has made at both ends."""

    def __init__(self, pair: Pair, name: str) -> None:
        self.pair = pair
        self.name = name

    def at(self, side: Side) -> migrations_pb2.Session:
        told: migrations_pb2.Session = self.pair.ask(side, "GetSession", self._session)
        return told

    def phase(self, side: Side) -> Phase:
        return Phase(self.at(side).phase)

    def failure(self, side: Side) -> Reason | None:
        number = self.at(side).failure
        return Reason(number) if number else None

    def wait(self, side: Side, phase: Phase) -> migrations_pb2.Session:
        """Until it is in this phase; it may have gone through others."""
        return self.wait_for(side, lambda told: Phase(told.phase) is phase, phase.name)

    def wait_for(
        self, side: Side, right: Callable[[migrations_pb2.Session], bool], what: str
    ) -> migrations_pb2.Session:
        deadline = time.monotonic() + PATIENCE_S
        while not right(told := self.at(side)):
            ended = Phase(told.phase) in ENDS
            assert not ended and time.monotonic() < deadline, f"{side.value}: not {what} but {told}"
            time.sleep(POLL_S)
        return told

    def wait_ends(self, source: Phase, target: Phase) -> None:
        self.wait(SOURCE, source)
        self.wait(TARGET, target)

    def cancel(self, side: Side, force_image: str = "") -> None:
        self.pair.ask(side, "CancelSession", self._end(force_image))

    def release(self, force_image: str = "") -> None:
        self.pair.ask(SOURCE, "ReleaseSession", self._end(force_image))

    def switch_over(self) -> None:
        self.pair.ask(TARGET, "SwitchOver", self._session)

    @property
    def _session(self) -> migrations_pb2.SessionName:
        return migrations_pb2.SessionName(session=self.name)

    def _end(self, force_image: str) -> migrations_pb2.EndSessionRequest:
        return migrations_pb2.EndSessionRequest(session=self.name, force_image=force_image)


class Move(Session):
    """One that is made here, as an orchestrator does."""

    def __init__(
        self, pair: Pair, *, hold_source: bool = False, postcopy: str = "allow", **options: Any
    ) -> None:
        """Further options: fields of StartSession."""
        super().__init__(pair, f"move-{secrets.token_hex(4)}")
        token = secrets.token_bytes(32)
        created = migrations_pb2.CreateSessionRequest(
            session=self.name,
            image=VM,
            token_sha256=hashlib.sha256(token).digest(),
            hold_source=hold_source,
        )
        pair.ask(SOURCE, "CreateSession", created)
        self._start_request = faultclient_pb2.StartSessionRequest(
            session=self.name,
            image=VM,
            vm=VM,
            data_address=pair.data.address,
            control_address=pair.control.address,
            postcopy=POSTCOPY_BY_WORD[postcopy],
            **options,
        )
        self._bearer = Ticket(self.name, token, 0, 0).authorization
        self.start()

    def start(self) -> None:
        """At the target. Again: the same session, and its token comes to a fault client that has lost it."""
        self.pair.ask(TARGET, "StartSession", self._start_request, [("authorization", self._bearer)])

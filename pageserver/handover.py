# SPDX-License-Identifier: Apache-2.0
"""The hand-over as the source sees it: the guest is stopped and saved once, and told to whoever asks.

What is done belongs to the session and not to a call: a stream that breaks is asked for again, and the answer
is the same. Until it is recorded the guest waits for the target, so each wait has an end, after which it runs
here again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

from pageferry.host.vmm import Vmm
from pageferry.limits import DEVICE_STATE_PIECE_BYTES, HEARTBEAT_TIMEOUT_MS, LINK_SILENT_MS
from pageferry.phases import Event, Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageserver.steps import Steps
from pageserver.switchover import Saved, stop_and_save
from pageserver.vm import Vm

# The state is saved: so long has the target to take it all; and after a lost stream, to ask again.
TAKE_S: Final = HEARTBEAT_TIMEOUT_MS / 1000
ASK_AGAIN_S: Final = LINK_SILENT_MS / 1000
TIMERS: Final = ("take", "ask again")


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of it; what it has not stays empty."""

    as_of: int = 0
    manifest_digest: bytes = b""
    stopped_us: int = 0
    device_state: bytes = b""
    device_state_digest: int = 0
    last: bool = False


class HandOver:
    """Of one session. `fail` gives the session up, if it still can."""

    def __init__(self, steps: Steps, fail: Callable[[Reason, str], bool]) -> None:
        self._steps = steps
        self._fail = fail
        self._saved: Saved | None = None
        self._switching: asyncio.Task[None] | None = None
        self._stopped_at: float | None = None
        self._askers = 0

    def stood_still_us(self) -> int:
        """Until now; 0 if it has not stood still."""
        return 0 if self._stopped_at is None else int((time.monotonic() - self._stopped_at) * 1e6)

    def ask(self) -> Callable[[], None]:
        """Somebody asks for it, until what this returns is called."""
        self._askers += 1
        self._steps.not_after("ask again")
        asking = [True]

        def leave() -> None:
            if asking:
                asking.clear()
                self._askers -= 1
                self._mind_the_guest()

        return leave

    def _mind_the_guest(self) -> None:
        """Nobody asks any more."""
        waits = self._steps.phase is Phase.SWITCHOVER and not self._steps.record.handed_over
        if waits and self._askers == 0:
            why = "the target has lost the hand-over's stream, and not asked again"
            self._steps.after("ask again", ASK_AGAIN_S, lambda: self._fail(Reason.GOING_AWAY, why))

    async def pieces(self, vm: Vm | None, vmm: Vmm | None) -> AsyncGenerator[Piece]:
        """In order; the hand-over is recorded before the last one is given. PageferryError: it is not to be,
        or not any more."""
        if self._steps.phase is Phase.PRECOPY and vm is not None and vmm is not None:
            self._begin(vm, vmm)
        saved = await self._state()
        frozen = saved.frozen
        yield Piece(
            as_of=frozen.as_of, manifest_digest=frozen.manifest_digest, stopped_us=self.stood_still_us()
        )
        for at in range(0, len(saved.device_state), DEVICE_STATE_PIECE_BYTES):
            self._check(saved)
            yield Piece(device_state=saved.device_state[at : at + DEVICE_STATE_PIECE_BYTES])
        self._check(saved)
        self._record()
        yield Piece(
            stopped_us=self.stood_still_us(), device_state_digest=saved.device_state_digest, last=True
        )

    def _begin(self, vm: Vm, vmm: Vmm) -> None:
        self._steps.move(Event.STOPPED, stopped=True)
        self._stopped_at = time.monotonic()
        self._switching = self._steps.means.begin("switch over", self._switch_over(vm, vmm))

    async def _switch_over(self, vm: Vm, vmm: Vmm) -> None:
        steps = self._steps
        try:
            saved = await stop_and_save(vm, vmm, steps.means.plane)
        except PageferryError as error:
            self._fail(error.reason, f"the guest could not be handed over: {error}")
            return
        except Exception as error:  # noqa: BLE001  # a fault of ours may not leave the guest standing still
            log.error("bug", session=steps.name, exc_info=error)
            self._fail(Reason.BUG, f"{type(error).__name__} while the guest was stopped")
            return
        self._saved = saved
        log.info(
            "frozen",
            session=steps.name,
            as_of=f"{saved.frozen.as_of:#x}",
            dirty_pages=saved.frozen.dirty_pages,
            state_bytes=len(saved.device_state),
            stopped_us=self.stood_still_us(),
        )
        why = f"the target has not taken the guest's state in {TAKE_S:g} s"
        steps.after("take", TAKE_S, lambda: self._fail(Reason.TOO_SLOW, why))
        steps.note(as_of=saved.frozen.as_of, manifest_digest=saved.frozen.manifest_digest)

    async def _state(self) -> Saved:
        """Once there is one."""
        while True:
            self._check(self._saved)
            if self._saved is not None:
                return self._saved
            if self._steps.record.handed_over:
                raise PageferryError(
                    Reason.MISMATCH,
                    "the page server was restarted after the hand-over: the guest's state is gone with it",
                    "record ABORTED: then the guest runs at the source",
                )
            await self._steps.change()

    def _check(self, saved: Saved | None) -> None:
        """The guest may have gone on meanwhile."""
        if self._steps.phase is not Phase.SWITCHOVER or self._saved is not saved:
            raise refusal(self._steps, "hand over")

    def _record(self) -> None:
        if not self._steps.record.handed_over:
            try:
                self._steps.move(Event.HANDED_OVER)
            except PageferryError as error:
                self._fail(error.reason, f"the hand-over could not be recorded: {error}")
                raise
            self._steps.not_after(*TIMERS)

    async def take_back(self) -> None:
        """Nothing of it is under way, or kept, when this returns."""
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.wait({self._switching})
        self.forget()

    def forget(self) -> None:
        """The target has the state, or nobody will."""
        self._saved = None


def refusal(steps: Steps, what: str) -> PageferryError:
    """That something cannot be in this phase, and why it is in it."""
    text = f"session {steps.name} is {steps.phase.name}"
    text += f" ({steps.message})" if steps.message else ""
    reason = Reason.NO_VMM if steps.record.failure is Reason.NO_VMM else Reason.WRONG_PHASE
    return PageferryError(reason, f"it cannot {what}: {text}")

# SPDX-License-Identifier: Apache-2.0
"""A session: one move of one running VM to one target, as its source sees it.

Decides; knows neither grpc nor sockets. It asks phases.py what may happen, and its record is on disk before
anything follows from that. Until the hand-over is recorded every error makes the guest run here again; from
then on only the target's word does, or an operator's.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from pageferry.host.vmm import Vmm
from pageferry.phases import Event, Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageserver.dataplane import LiveState
from pageserver.ending import RETRY_S, Ending
from pageserver.handover import HandOver, Piece, refusal
from pageserver.record import SourceRecord
from pageserver.steps import Means, Steps
from pageserver.vm import Vm

# The target has said that the guest runs there; all pages are there, or given up.
ACCEPTED: Final = frozenset({Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED, Phase.LOST})
COMPLETE: Final = ACCEPTED - {Phase.POSTCOPY}
RESTARTED: Final = "the page server was restarted"


@dataclass(frozen=True, slots=True)
class Report:
    """What a target has recorded."""

    phase: Phase
    manifest_digest: bytes = b""
    pages_owned: int = 0
    pages_zero: int = 0
    pages_poisoned: int = 0


class Session(Steps):
    """`precopy`: rounds may be opened while the guest runs. `recovered`: an earlier server has begun it."""

    def __init__(
        self,
        record: SourceRecord,
        means: Means,
        vm: Vm | None,
        vmm: Vmm | None = None,
        *,
        precopy: bool = True,
        recovered: bool = False,
    ) -> None:
        super().__init__(record, means, at_gate=not recovered, precopy=precopy)
        self._hand_over = HandOver(self, self.fail)
        self._ending = Ending(self, vm, vmm, recovered=recovered)
        self._state = LiveState(0, record.page_count, 0, 0, 0, False)

    @property
    def vm(self) -> Vm | None:
        return self._ending.vm

    @property
    def given_away(self) -> bool:
        """The target may still need pages that are here, and nobody here can take that back."""
        served = self.vm is not None and self.vm.served
        return served and self.record.handed_over and self.phase in (Phase.SWITCHOVER, Phase.POSTCOPY)

    @property
    def peer(self) -> str:
        record = self.record
        return f"{record.peer} target={record.target:016x} epoch={record.epoch}" if record.target else ""

    def state(self) -> LiveState:
        """Of the image; the newest that there was once it is gone."""
        if self.vm is not None and self.vm.served:
            with suppress(PageferryError):  # it goes just now
                self._state = self.means.plane.live_state(self.image)
        return self._state

    def downtime_us(self) -> int:
        """Until now while the guest stands still for the hand-over."""
        return self._hand_over.stood_still_us() if self.phase is Phase.SWITCHOVER else self.record.downtime_us

    # ------------------------------------------------------------------------------------------ begin, attach

    def begin(self) -> None:
        """PageferryError: it cannot be recorded, or the data port has no room for it; then there is none."""
        self.means.records.write(self.name, self.record.to_fields())
        try:
            self.means.plane.set_session(self.gate())
        except PageferryError:
            self.means.records.remove(self.name)
            raise
        seconds = self.record.terms.attach_within_s
        why = f"no target has attached in {seconds} s"
        self.after("attach", seconds, lambda: self.fail(Reason.TOO_SLOW, why))
        log.info("session", session=self.name, image=self.image, vmm=self.record.machine)

    def replace_token(self, token_sha256: bytes) -> None:
        """ALREADY_ATTACHED once a target has shown one."""
        if self.phase is not Phase.CREATED:
            raise PageferryError(
                Reason.ALREADY_ATTACHED,
                f"session {self.name} is {self.phase.name}: its token is what it was",
                "create another session",
            )
        self.note(terms=replace(self.record.terms, token_sha256=token_sha256))

    def attached(self, target: int, epoch: int, peer: str) -> None:
        """A target has opened FetchPages with the session's token."""
        self.go_on(Reason.GOING_AWAY)
        if self.phase is Phase.CREATED:
            self.not_after("attach")
            self.move(Event.ATTACHED, target=target, epoch=epoch, peer=peer)
        elif not self.ended:
            self.note(epoch=max(epoch, self.record.epoch), peer=peer)

    def superseded(self, epoch: int) -> None:
        """A newer worker of the target has come."""
        if not self.ended and epoch > self.record.epoch:
            self.note(epoch=epoch)

    def silent(self) -> None:
        """No call of the target's is open. Nothing follows: whether it is dead, an operator knows."""
        if self.phase in (Phase.PRECOPY, Phase.SWITCHOVER, Phase.POSTCOPY):
            self.pause(Reason.GOING_AWAY, "the target has no connection to the data port")

    def check_target(self, target: int, epoch: int) -> None:
        """Of whoever has shown the token. PageferryError, in the order of the data port."""
        if self.record.target not in (0, target):
            raise PageferryError(Reason.ALREADY_ATTACHED, f"session {self.name} has another target")
        if epoch < self.record.epoch:
            raise PageferryError(Reason.SUPERSEDED, "a newer worker has taken over this VM")
        if self.record.target == 0:
            raise PageferryError(
                Reason.WRONG_PHASE, f"nobody has attached to session {self.name} yet", "open FetchPages first"
            )

    # ------------------------------------------------------------------------------------ hand-over, reports

    def ask(self) -> Callable[[], None]:
        """Somebody asks for the hand-over, until what this returns is called."""
        return self._hand_over.ask()

    def hand_over(self) -> AsyncGenerator[Piece]:
        """The messages of it, in order. Within ask()."""
        return self._hand_over.pieces(self._ending.vm, self._ending.vmm)

    def hear(self, report: Report) -> None:
        """What the target has recorded; the same again changes nothing. PageferryError: it cannot be so."""
        match report.phase:
            case Phase.POSTCOPY:
                self._hear_accepted(report)
            case Phase.ABORTED:
                self._hear_aborted()
            case Phase.COMMITTED:
                self._hear_committed(report)
            case _:
                raise PageferryError(
                    Reason.BAD_REQUEST,
                    f"a target does not report {report.phase.name}",
                    "report POSTCOPY, ABORTED or COMMITTED",
                )

    def _hear_accepted(self, report: Report) -> None:
        if self.phase not in ACCEPTED:
            self._check_may(Event.ACCEPTED)
            self._check_digest(report)
            self._accept()

    def _accept(self) -> None:
        self.move(Event.ACCEPTED, downtime_us=self.downtime_us())
        self._hand_over.forget()

    def _hear_aborted(self) -> None:
        """In LOST the guest's memory is given up: then this is no news to anybody."""
        if self.phase not in (Phase.ABORTED, Phase.LOST):
            self._check_may(Event.ABORT_REPORTED)
            self._abort(Event.ABORT_REPORTED, Reason.CANCELLED, "the target has given up")

    def _hear_committed(self, report: Report) -> None:
        """Implies that it has accepted. LOST is an answer too: nobody waits for this report there."""
        if self.phase in COMPLETE:
            return
        if self.phase is not Phase.POSTCOPY:
            self._check_may(Event.ACCEPTED)
        self._check_digest(report)
        told = report.pages_owned + report.pages_zero + report.pages_poisoned
        if told != self.record.page_count:
            raise self._mismatch(f"the target counts {told} pages, the image has {self.record.page_count}")
        if self.phase is not Phase.POSTCOPY:
            self._accept()
        self.move(Event.COMPLETE, pages_poisoned=report.pages_poisoned)
        self.go_on()
        if not self.record.terms.hold_source:
            self._release_soon()

    def _check_may(self, event: Event) -> None:
        if not self.may(event):
            if self.phase is Phase.ABORTED and event is Event.ACCEPTED:
                log.error("runs_twice", session=self.name, text="the target says that the guest runs there")
            raise refusal(self, f"hear {event.name}")

    def _check_digest(self, report: Report) -> None:
        if report.manifest_digest != self.record.manifest_digest:
            raise self._mismatch("the target's versions are not those that were frozen here")

    def _mismatch(self, message: str) -> PageferryError:
        """Stop, never guess: the memory is kept."""
        self.pause(Reason.MISMATCH, message)
        log.error("mismatch", session=self.name, text=message)
        return PageferryError(Reason.MISMATCH, message, "keep both VMMs, and report it with both logs")

    # --------------------------------------------------------------------------------------------- operators

    def cancel(self, force_image: str, by: str) -> None:
        """Before the hand-over: ABORTED. Later a request to the target; with the image's name, the word of an
        operator that the target is dead and stays dead: ABORTED."""
        self._check_force(force_image)
        if self.phase is Phase.ABORTED:
            return
        if self.may(Event.CANCELLED):
            self._abort(Event.CANCELLED, Reason.CANCELLED, f"cancelled by {by}")
        elif force_image and self.may(Event.FORCED_BACK):
            self._audit("forced_back", by)
            self._abort(Event.FORCED_BACK, Reason.CANCELLED, f"forced back by {by}: the target is dead")
        elif not force_image and self.phase is Phase.SWITCHOVER:
            if not self.record.cancel_requested:
                self.note(cancel_requested=True)
        else:
            raise refusal(self, "be cancelled")

    def release(self, force_image: str, by: str) -> None:
        """COMMITTED: RELEASED. With the image's name, from the hand-over on: LOST."""
        self._check_force(force_image)
        if self.phase in (Phase.RELEASED, Phase.LOST):
            return
        if self.may(Event.RELEASED):
            self._release()
        elif force_image and self.may(Event.GIVEN_UP):
            self._audit("given_up", by)
            self.move(Event.GIVEN_UP, failure=Reason.CANCELLED, message=f"memory given up by {by}")
            self._give_up_memory()
        else:
            raise refusal(self, "be released")

    def _check_force(self, force_image: str) -> None:
        if force_image not in ("", self.image):
            raise PageferryError(
                Reason.BAD_REQUEST,
                f"session {self.name} is of image {self.image}, not {force_image}",
                "to force it, type the name of its image",
            )

    def _audit(self, what: str, by: str) -> None:
        log.warning("audit", what=what, session=self.name, image=self.image, phase=self.phase.name, by=by)

    # --------------------------------------------------------------------------------------------- its ends

    def fail(self, reason: Reason, message: str) -> bool:
        """Gives the move up. False, and nothing has changed, once the hand-over is recorded."""
        return self.may(Event.FAILED) and self._abort(Event.FAILED, reason, message)

    def vmm_gone(self) -> None:
        """After the hand-over it may go: its memory is a file that the data plane holds too."""
        if self.may(Event.VMM_GONE):
            self._abort(Event.VMM_GONE, Reason.NO_VMM, "the VMM has exited")
        elif not self.ended:
            log.info("vmm_gone", session=self.name, phase=self.phase.name)

    def recover(self) -> None:
        """The first thing that a session of an earlier server is asked. Its userfaultfd has ended with that
        one, so nothing is known of what the guest writes, and rounds cannot go on."""
        if self.phase is Phase.ABORTED:
            self._give_back()
        elif self.ended:
            self._give_up_memory()
        elif not self.record.handed_over and (self.vm is None or self.vm.gone):
            self._abort(Event.VMM_GONE, Reason.NO_VMM, f"{RESTARTED}, and the VMM has exited")
        elif not self.record.handed_over:
            why = f"{RESTARTED}: only a VM that is started anew can be moved again"
            self._abort(Event.FAILED, Reason.GOING_AWAY, why)
        elif self.phase is not Phase.COMMITTED:
            why = f"{RESTARTED} after the hand-over: which pages are newest is not known any more"
            self.pause(Reason.MISMATCH, why)
        elif not self.record.terms.hold_source:
            self._release_soon()

    def _abort(self, event: Event, reason: Reason, message: str) -> bool:
        self.move(event, failure=reason, message=message)
        self.not_after()
        self.go_on()
        self._give_back()
        return True

    def _give_back(self) -> None:
        async def give_back() -> None:
            await self._hand_over.take_back()
            await self._ending.give_back(self._hand_over.stood_still_us)

        self.means.begin("give back", give_back())

    def _release_soon(self) -> None:
        """At once, or as soon as it can be recorded."""
        try:
            self._release()
        except PageferryError as error:
            self.pause(error.reason, str(error))
            self.after("release", RETRY_S, self._release_soon)

    def _release(self) -> None:
        if self.may(Event.RELEASED):
            self.move(Event.RELEASED)
            self._give_up_memory()

    def _give_up_memory(self) -> None:
        self.not_after()
        self.go_on()
        self._hand_over.forget()
        self.means.begin("give up memory", self._ending.give_up_memory())

    async def settled(self) -> None:
        """Returns once what its end asks for is done."""
        while not self.record.settled:
            await self.change()

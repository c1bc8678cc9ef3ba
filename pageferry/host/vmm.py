# SPDX-License-Identifier: Apache-2.0
"""The adapter: what a session may ask of a VMM, whoever it is. Both sides of a move have one.

    source: attach(SOURCE)  pause  save_state        then kill, or resume after an abort
    target: attach(TARGET)         load_state  resume           or kill after an abort

Rules for whoever implements it:
- attach() looks, and refuses with a remedy what cannot work, before a page has moved. It changes nothing of
  the guest, whether it refuses or not.
- Every call is bounded in time. What is not answered is TOO_SLOW, what has ended is NO_VMM, a VMM's own "no"
  is told in its own words.
- A call that failed or was cancelled in the middle is no end: at the source resume() makes the guest run
  again from wherever it was left, and pause() with save_state() may follow once more.
- pause(), resume() and kill() may be asked again.
- close() lets go and ends nothing; the VMM is left as it was found, apart from what the move did.
- No signal goes to a process by its number: pidfds only.
"""

from dataclasses import dataclass
from typing import Protocol

from pageferry.phases import Side


@dataclass(frozen=True, slots=True)
class VmmFacts:
    """What attach() has seen."""

    name: str  # with its version, for people: "qemu 10.0.2"
    machine: str  # both ends must have the same; empty: this VMM has no such thing
    version: str
    memory_bytes: int = 0  # of the guest, as the VMM counts it; 0: it does not say
    running: bool = False  # the guest runs now
    warnings: tuple[str, ...] = ()  # for the operator; none of them keeps the move from working
    below_4g_bytes: int = 0  # of an x86 PC: at most so much of its memory lies below 4 GiB; 0: not known


class Vmm(Protocol):
    async def attach(self, side: Side, *, precopy: bool = True) -> VmmFacts:
        """`precopy` False, of a source: the guest will stand still before its first page is read, so writes
        that nobody sees from outside do no harm.
        """

    async def pause(self) -> None:
        """The guest stands still, and nothing that it has asked for is under way."""

    async def save_state(self) -> bytes:
        """All but the guest's memory. May write that memory, so versions are frozen after it."""

    async def load_state(self, state: bytes) -> None:
        """At the target; faults must be served meanwhile. An error: the load has failed, for good; MISMATCH:
        this VMM cannot be what that state came from."""

    async def resume(self) -> None:
        """The guest runs. Before, at the source: whoever stopped the process itself has continued it."""

    async def kill(self) -> None:
        """By SIGKILL; the VMM is gone when this returns."""

    async def close(self) -> None: ...

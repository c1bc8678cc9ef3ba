# SPDX-License-Identifier: Apache-2.0
"""Hand-offs as they come: each named VM's memory is taken at once, and kept until a session wants it.

A VMM under the shim stands in its first mmap until somebody takes its memory, so it is told so here, before
any session is known. Nobody touches that memory meanwhile: a VMM that waits for its guest has no reason to,
and would only wait.
"""

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from faultclient.onward import check_onward
from pageferry.host.handoff import Handoff
from pageferry.host.listener import Listener
from pageferry.host.vmspec import VmSpec
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageferry.service.taking import take_each

LOOK_S: Final = 0.5


class Handoffs:
    """Of all VMs that this process was told of."""

    def __init__(
        self, specs: Sequence[VmSpec], *, vmm_uid: int | None, accept: Callable[[int], None]
    ) -> None:
        """`accept` tells a shim on its connection that its memory is taken."""
        self._specs = {spec.name: spec for spec in specs}
        self._vmm_uid = vmm_uid
        self._accept = accept
        self._waiting: dict[str, Handoff] = {}
        self._news = asyncio.Event()

    def spec(self, name: str) -> VmSpec:
        """PageferryError: there is no VM of this name."""
        try:
            return self._specs[name]
        except KeyError:
            raise PageferryError(
                Reason.NO_VMM,
                f"this fault client was told of no VM {name!r}",
                f"name one of {', '.join(self._specs)}" if self._specs else "start it with --vm",
            ) from None

    # ------------------------------------------------------------------------------------------------- taking

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listens on every socket while it lasts. PageferryError: it cannot."""
        async with AsyncExitStack() as stack:
            listeners = {
                name: stack.enter_context(Listener(spec.handoff, vmm_uid=self._vmm_uid))
                for name, spec in self._specs.items()
            }
            tasks = [asyncio.create_task(self._watch())]
            for name, listener in listeners.items():
                log.info("waiting", vm=name, socket=str(listener.path))
                tasks.append(asyncio.create_task(take_each(name, listener, partial(self._take, name))))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for handoff in self._waiting.values():
                    handoff.close()
                self._waiting.clear()

    async def _take(self, name: str, handoff: Handoff) -> None:
        """PageferryError: it is refused, and closed."""
        try:
            self._check(name, handoff)
            if handoff.frames:
                self._accept(handoff.connection.fileno())
        except BaseException:
            handoff.close()
            raise
        self._drop(name)
        log.info("handoff", vm=name, pid=handoff.pid, memory_bytes=handoff.length_bytes)
        self.give_back(name, handoff)

    def _check(self, name: str, handoff: Handoff) -> None:
        check_role(handoff)
        if self._specs[name].onward is not None:
            check_onward(handoff)
        before = self._waiting.get(name)
        if before is not None and not has_exited(before):
            raise PageferryError(
                Reason.ALREADY_ATTACHED,
                f"VM {name} is here already: process {before.pid}",
                "end that one, or give this one a name of its own",
            )

    async def _watch(self) -> None:
        """A VMM that has exited meanwhile has nothing to hand over."""
        while True:
            await asyncio.sleep(LOOK_S)
            for name in [name for name, handoff in self._waiting.items() if has_exited(handoff)]:
                log.warning("vmm_gone", vm=name, pid=self._waiting[name].pid)
                self._drop(name)

    def _drop(self, name: str) -> None:
        handoff = self._waiting.pop(name, None)
        if handoff is not None:
            handoff.close()

    # ------------------------------------------------------------------------------------------------- giving

    async def taken(self, name: str) -> Handoff:
        """The VM's hand-off, once it is there; it is the caller's then."""
        while name not in self._waiting or has_exited(self._waiting[name]):
            self._drop(name)
            await self._news.wait()
        return self._waiting.pop(name)

    def give_back(self, name: str, handoff: Handoff) -> None:
        self._waiting[name] = handoff
        self._news.set()
        self._news = asyncio.Event()


def check_role(handoff: Handoff) -> None:
    """PageferryError: this VM's pages are not to come from elsewhere, it runs."""
    if not handoff.role.restores:
        raise PageferryError(
            Reason.BAD_REQUEST,
            "this VM has handed its memory over to be tracked: it is the source of a move",
            "let it connect to its page server, or start it without PAGEFERRY_SHIM_ROLE=track",
        )


def has_exited(handoff: Handoff) -> bool:
    """Known where there is a pidfd."""
    if handoff.pidfd < 0:
        return False
    poll = select.poll()
    poll.register(handoff.pidfd, select.POLLIN)
    return bool(poll.poll(0))

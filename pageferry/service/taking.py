# SPDX-License-Identifier: Apache-2.0
"""Hand-offs as VMMs bring them to a socket. A service takes one after another for as long as it lives: what
is wrong with one, or with us for a moment, is no reason to let the next VMM wait for ever."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pageferry.host.handoff import Handoff
from pageferry.host.listener import Listener
from pageferry.reasons import PageferryError
from pageferry.service.logs import log

ACCEPT_S: Final = 1.0
# After an error that has nothing to do with the VMM: no descriptors are left, for instance.
BREATH_S: Final = 1.0


async def take_each(vm: str, listener: Listener, take: Callable[[Handoff], Awaitable[None]]) -> None:
    """Until it is cancelled. A hand-off is `take`'s, whatever comes of it; PageferryError: it is refused."""
    while True:
        await readable(listener)
        try:
            await take(await accepted(listener))
        except PageferryError as error:
            log.error("handoff_refused", vm=vm, reason=error.reason.name, text=str(error))
        except Exception as error:  # noqa: BLE001  # the VMs that are here need this process
            log.error("handoff_failed", vm=vm, text=str(error), exc_info=error)
            await asyncio.sleep(BREATH_S)


async def readable(listener: Listener) -> None:
    """Somebody has connected."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(listener.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(listener.fileno())


async def accepted(listener: Listener) -> Handoff:
    """On another thread: a VMM that dawdles may not hold up the loop. What comes after a cancel is closed."""
    accepting = asyncio.ensure_future(asyncio.to_thread(listener.accept, timeout_s=ACCEPT_S))
    try:
        return await asyncio.shield(accepting)
    except asyncio.CancelledError:
        await asyncio.wait({accepting})
        if accepting.exception() is None:
            accepting.result().close()
        raise

# SPDX-License-Identifier: Apache-2.0
"""The hand-over as the target sees it: the frozen map is compared and the pager armed while the device state
still comes in.

The source answers a second question as it did the first, so a stream that breaks is asked for again.
"""

import asyncio
import time
from contextlib import aclosing
from typing import Final

import xxhash

from faultclient.asking import HandOverPart, Source, patiently
from faultclient.orders import Orders
from faultclient.session import Postcopy, Session
from pageferry.limits import DEVICE_STATE_BYTES_MAX
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log

PATIENCE_S: Final = 30.0
LOOK_S: Final = 0.002
# Postcopy forbidden: how long the guest may stand still for the pages of the final round.
ALL_HERE_S: Final = 30.0


class HandOver:
    """received() once; then the figures."""

    def __init__(self, source: Source, orders: Orders, postcopy: Postcopy, session: Session) -> None:
        self.digest = b""
        self._source = source
        self._orders = orders
        self._postcopy = postcopy
        self._session = session
        self._as_of = 0
        self._stopped_at_s = 0.0  # by our clock: when the guest at the source was stopped
        self._preparing: asyncio.Task[None] | None = None

    async def received(self) -> bytes:
        """The device state, whole, with all that it needs to be loaded: faults are served. PageferryError:
        the source does not hand over, or what it has handed over is not what is here."""
        try:
            state = await patiently(self._session, self._once, PATIENCE_S)
            assert self._preparing is not None
            await self._preparing
        finally:
            if self._preparing is not None:
                self._preparing.cancel()
        return state

    def standing_us(self) -> int:
        """How long the guest has stood still, now."""
        return round((time.monotonic() - self._stopped_at_s) * 1e6)

    async def _once(self) -> bytes:
        state = bytearray()
        first = True
        async with aclosing(self._source.hand_over()) as parts:
            async for part in parts:
                if first:
                    self._begin(part)
                    first = False
                state += part.state
                if len(state) > DEVICE_STATE_BYTES_MAX:
                    raise PageferryError(
                        Reason.MISMATCH,
                        f"the device state has more than {DEVICE_STATE_BYTES_MAX} bytes",
                        "is the guest's RAM in it? Put that on a file of its own",
                    )
                if part.last:
                    self._stopped_at_s = time.monotonic() - part.stopped_us / 1e6
                    return self._whole(bytes(state), part.state_digest)
        raise PageferryError(Reason.GOING_AWAY, "the hand-over broke off before its last message")

    def _begin(self, first: HandOverPart) -> None:
        """The source's map is frozen, and will be the same when it is asked again."""
        if self._preparing is None:
            self._as_of, self.digest = first.as_of, first.digest
            self._preparing = asyncio.create_task(self._prepare())
        elif (first.as_of, first.digest) != (self._as_of, self.digest):
            raise PageferryError(
                Reason.MISMATCH, "the source has another frozen map than before", "see its log: it may run"
            )

    async def _prepare(self) -> None:
        """The newest of every page is known, and faults are served."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                read = await self._orders.round(open_new=False)
        except TimeoutError as error:
            text = self._session.message or "the frozen map could not be read"
            raise PageferryError(self._session.paused or Reason.TOO_SLOW, text) from error
        if (read.value, read.digest) != (self._as_of, self.digest):
            raise PageferryError(
                Reason.MISMATCH,
                f"the map of versions that is here (as of {read.value:#x}) is not what the source has frozen "
                f"(as of {self._as_of:#x})",
                "please report it with both logs",
            )
        log.info("frozen", session=self._session.name, as_of=f"{read.value:#x}", pages_missing=read.page)
        if self._postcopy is Postcopy.FORBID:
            await self._all_here()
        await self._orders.arm()

    async def _all_here(self) -> None:
        try:
            async with asyncio.timeout(ALL_HERE_S):
                while self._orders.missing():
                    await asyncio.sleep(LOOK_S)
        except TimeoutError as error:
            raise PageferryError(
                Reason.TOO_SLOW,
                f"{self._orders.missing()} pages have not come in {ALL_HERE_S:g} s, while it stood still",
                "allow postcopy",
            ) from error

    def _whole(self, state: bytes, digest: int) -> bytes:
        if xxhash.xxh3_64_intdigest(state) != digest:
            raise PageferryError(Reason.GOING_AWAY, "the device state came damaged")
        return state

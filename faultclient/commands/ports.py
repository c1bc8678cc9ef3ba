# SPDX-License-Identifier: Apache-2.0
"""Control ports that are looked at again and again, and the rows that their sessions make: what both ends of
a move say of it stands in one."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from faultclient.commands.control import Control, fault_client, page_server
from faultclient.commands.words import phase_of
from pageferry.phases import ENDS
from pageferry.reasons import PageferryError
from pageferry.v1 import migrations_pb2

RATE_WINDOW_S: Final = 3.0


@dataclass(slots=True)
class Port:
    """One control port and what it said last."""

    side: str  # source: a page server's; target: a fault client's
    address: str
    sessions: list[migrations_pb2.Session] = field(default_factory=list)
    error: PageferryError | None = None  # it does not answer, and why
    _heard: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # of late: when, how many bytes
    _control: Control | None = None

    async def look(self) -> None:
        if self._control is None:
            self._control = (page_server if self.side == "source" else fault_client)(self.address)
        try:
            self.take(await self._control.listed(), time.monotonic())
        except PageferryError as error:
            self.error = error

    def take(self, sessions: list[migrations_pb2.Session], now_s: float) -> None:
        self.sessions, self.error = sessions, None
        before, self._heard = self._heard, {}
        for session in sessions:
            lately = [one for one in before.get(session.session, []) if one[0] >= now_s - RATE_WINDOW_S]
            self._heard[session.session] = [*lately, (now_s, session.wire_bytes)]

    def bytes_per_s(self, session: str) -> float:
        """That have come of late; 0 if that is not known yet."""
        heard = self._heard.get(session, [])
        lasted_s = heard[-1][0] - heard[0][0] if heard else 0.0
        return (heard[-1][1] - heard[0][1]) / lasted_s if lasted_s > 0 else 0.0

    async def close(self) -> None:
        if self._control is not None:
            await self._control.close()


@dataclass(slots=True)
class Row:
    """A session, as either end has it, or both."""

    source: migrations_pb2.Session | None = None
    target: migrations_pb2.Session | None = None
    source_at: str = ""
    target_at: str = ""
    bytes_per_s: float = 0.0

    @property
    def either(self) -> migrations_pb2.Session:
        found = self.target if self.target is not None else self.source
        assert found is not None
        return found

    @property
    def ended(self) -> bool:
        return all(phase_of(one) in ENDS for one in (self.source, self.target) if one is not None)

    @property
    def since(self) -> int:
        return max(one.phase_since.ToNanoseconds() for one in (self.source, self.target) if one is not None)


def rows_of(ports: Iterable[Port]) -> list[Row]:
    """What goes on first, then the newest. A name that comes twice at one side makes two rows."""
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for port in sorted(ports, key=lambda port: port.side):  # a row is begun by its source
        for session in port.sessions:
            key = (session.session, session.image)
            free = [row for row in rows[key] if getattr(row, port.side) is None]
            row = free[0] if free else Row()
            if not free:
                rows[key].append(row)
            if port.side == "source":
                row.source, row.source_at = session, port.address
            else:
                row.target, row.target_at = session, port.address
                row.bytes_per_s = port.bytes_per_s(session.session)
    found = [row for alike in rows.values() for row in alike]
    return sorted(found, key=lambda row: (row.ended, -row.since))


def several(ports: Sequence[Port], side: str) -> bool:
    """Then a row says where it is."""
    return sum(port.side == side for port in ports) > 1

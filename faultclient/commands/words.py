# SPDX-License-Identifier: Apache-2.0
"""A session in words, for whoever shows one: as JSON, as a phase with its reason, as numbers with units."""

from typing import Any, Final

from pageferry.limits import PAGE_BYTES
from pageferry.phases import Phase
from pageferry.reasons import Reason
from pageferry.v1 import migrations_pb2

MIB: Final = 1 << 20
REASONS: Final = ("paused", "failure")


def as_json(session: migrations_pb2.Session) -> dict[str, Any]:
    """Every field by its name in the contract; a number is a number, a phase or a reason its short name."""
    told: dict[str, Any] = {}
    for field in session.DESCRIPTOR.fields:
        value = getattr(session, field.name)
        if field.name == "phase":
            value = phase_name(session)
        elif field.name in REASONS:
            value = Reason(value).name if value else None
        elif field.name == "phase_since":
            value = value.ToJsonString()
        told[field.name] = value
    return told


def phase_of(session: migrations_pb2.Session) -> Phase | None:
    """None: it has none that we know."""
    number = int(session.phase)
    return Phase(number) if number in Phase.__members__.values() else None


def phase_name(session: migrations_pb2.Session) -> str:
    phase = phase_of(session)
    return phase.name if phase is not None else "unknown"


def state(session: migrations_pb2.Session) -> str:
    """The phase, and why nothing moves or why it failed."""
    words = [phase_name(session)]
    if session.paused:
        words += ["PAUSED", Reason(session.paused).name]
    if session.failure:
        words.append(Reason(session.failure).name)
    return " ".join(words)


def share_here(session: migrations_pb2.Session) -> float:
    """Of the memory, 0 to 1."""
    return session.pages_settled / session.pages_total if session.pages_total else 0.0


def lost_text(session: migrations_pb2.Session) -> str:
    """1 page lost; empty: none is."""
    count = session.pages_poisoned
    return f"{count:,} page{'' if count == 1 else 's'} lost" if count else ""


def size_text(byte_count: float) -> str:
    """12 MiB, 1.3 GiB."""
    mib = byte_count / MIB
    return f"{mib / 1024:.1f} GiB" if mib >= 1000 else f"{mib:.0f} MiB"


def pages_text(page_count: int) -> str:
    return size_text(page_count * PAGE_BYTES)


def rate_text(bytes_per_s: float) -> str:
    """As links are counted: in powers of ten."""
    return f"{bytes_per_s / 1e6:.1f} MB/s"


def ms_text(us: float) -> str:
    """0.4 ms, 12.3 ms, 130 ms, 2.41 s, 312 s."""
    if us >= 1e6:
        return f"{us / 1e6:.2f} s" if us < 1e8 else f"{us / 1e6:,.0f} s"
    return f"{us / 1000:.0f} ms" if us >= 1e5 else f"{us / 1000:.1f} ms"


def clock_text(seconds: float) -> str:
    """0:04, 12:33, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

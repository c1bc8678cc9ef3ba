# SPDX-License-Identifier: Apache-2.0
"""A move as lines: for people whose stderr is no terminal, and as JSON for programs."""

import json
import sys
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from faultclient.commands.moving import Moving, Sample
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason

MIB: Final = 1 << 20


def in_words(sample: Sample) -> str:
    """How far it is, in one line."""
    session = sample.session
    words = [f"{sample.at_s:8.1f} s  {sample.side}  {Phase(session.phase).name}"]
    if session.paused:
        words.append(f"PAUSED {Reason(session.paused).name}")
    if session.pages_total and sample.side == "target":
        words.append(f"{session.pages_settled / session.pages_total:.0%} of {session.pages_total} pages")
        words.append(f"{session.wire_bytes / MIB:.0f} MiB")
    if session.message:
        words.append(session.message)
    return "  ".join(words)


class JsonLines:
    """One object a line on stdout: a start before the first call, each change, the figures at the end."""

    def started(self, moving: Moving) -> None:
        self._write({"event": "start", "session": moving.options.session})

    def sampled(self, moving: Moving, sample: Sample) -> None:
        told = MessageToDict(sample.session, preserving_proto_field_name=True)
        self._write({"event": "session", "at_ms": round(sample.at_s * 1000), "side": sample.side, **told})

    def said(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    def ended(self, moving: Moving, error: PageferryError | None) -> None:
        failure = {"failure": error.reason.name, "message": str(error)} if error is not None else {}
        self._write({"event": "end", "session": moving.options.session, **moving.figures(), **failure})

    def _write(self, told: dict[str, Any]) -> None:
        print(json.dumps(told), flush=True)


class TextLines:
    """One line on stderr for each phase and each pause; the figures on stdout at the end."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[int, int]] = {}

    def started(self, moving: Moving) -> None:
        options = moving.options
        self.said(f"session {options.session}: {options.image} moves to {options.vm} at {options.target}")

    def sampled(self, moving: Moving, sample: Sample) -> None:
        state = (sample.session.phase, sample.session.paused)
        if self._shown.get(sample.side) != state:
            self._shown[sample.side] = state
            self.said(in_words(sample))

    def said(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def ended(self, moving: Moving, error: PageferryError | None) -> None:
        for name, value in moving.figures().items():
            print(f"{name:<14} {value}")

# SPDX-License-Identifier: Apache-2.0
"""What a view of a move has to do, and two that are lines: for people whose stderr is no terminal, and as
JSON for programs."""

import json
import sys
from typing import Any, Protocol

from faultclient.commands.moving import Moving, Sample
from faultclient.commands.words import as_json, lost_text, share_here, size_text, state
from pageferry.reasons import PageferryError


class View(Protocol):
    """Who shows it: lines of JSON, lines of text, or a live view."""

    def started(self, moving: Moving) -> None: ...
    def sampled(self, moving: Moving, sample: Sample) -> None: ...
    def said(self, text: str) -> None: ...
    def ended(self, moving: Moving, error: PageferryError | None) -> None: ...
    def close(self) -> None:
        """Whatever happened: nothing of it stays on a terminal."""


def in_words(side: str, session: Any) -> str:
    """How far it is, in one line."""
    words = [f"{side:<6}  {state(session)}"]
    if session.pages_total and side == "target":
        words.append(f"{int(share_here(session) * 100)}% of {session.pages_total} pages")
        words.append(size_text(session.wire_bytes))
    if session.pages_poisoned:
        words.append(lost_text(session))
    if session.message:
        words.append(session.message)
    return "  ".join(words)


def print_figures(moving: Moving) -> None:
    for name, value in moving.figures().items():
        print(f"{name:<17} {value}")


class JsonLines:
    """One object a line on stdout: a start before the first call, each change, the figures at the end."""

    def started(self, moving: Moving) -> None:
        self._write({"event": "start", "session": moving.options.session})

    def sampled(self, moving: Moving, sample: Sample) -> None:
        at_ms = round(sample.at_s * 1000)
        self._write({"event": "session", "at_ms": at_ms, "side": sample.side, **as_json(sample.session)})

    def said(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    def ended(self, moving: Moving, error: PageferryError | None) -> None:
        failure = {"failure": error.reason.name, "message": str(error)} if error is not None else {}
        self._write({"event": "end", "session": moving.options.session, **moving.figures(), **failure})

    def close(self) -> None:
        pass

    def _write(self, told: dict[str, Any]) -> None:
        print(json.dumps(told), flush=True)


class TextLines:
    """One line on stderr for each phase and each pause; the figures on stdout at the end."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def started(self, moving: Moving) -> None:
        options = moving.options
        self.said(f"session {options.session}: {options.image} moves to {options.vm} at {options.target}")

    def sampled(self, moving: Moving, sample: Sample) -> None:
        if self._shown.get(sample.side) != state(sample.session):
            self._shown[sample.side] = state(sample.session)
            self.said(f"{sample.at_s:8.1f} s  {in_words(sample.side, sample.session)}")

    def said(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def ended(self, moving: Moving, error: PageferryError | None) -> None:
        print_figures(moving)

    def close(self) -> None:
        pass

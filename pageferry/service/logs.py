# SPDX-License-Identifier: Apache-2.0
"""Logs: one line, the event's name first, then key=value; or JSON with the same keys. Always on stderr.

Control path only: what happens to single pages is counted (metrics) and traced in memory, never logged. The
same line again within a while is not written; the next one says how many were left out.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import click
import structlog
from structlog.typing import EventDict, WrappedLogger

FORMATS: Final = ("auto", "text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
# A line that says the same as one of these last seconds is counted, not written.
REPEAT_S: Final = 10.0
REPEATS_KEPT: Final = 256

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Repeats:
    """Drops lines that say the same as a recent one; what follows the silence says `repeated=N`."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._written: dict[str, tuple[float, int]] = {}  # what was said -> when, and how often again

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        said = repr(sorted((key, repr(value)) for key, value in event.items()))
        now = self._now()
        when, again = self._written.get(said, (now - REPEAT_S, 0))
        if now - when < REPEAT_S:
            self._written[said] = (when, again + 1)
            raise structlog.DropEvent
        self._written.pop(said, None)  # so that it is the newest
        self._written[said] = (now, 0)
        if len(self._written) > REPEATS_KEPT:
            del self._written[next(iter(self._written))]
        return {**event, "repeated": again} if again else event


def _in_order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The event first, its level if that is worth a look, what it says, when."""
    name, level, when = event.pop("event"), event.pop("level"), event.pop("timestamp")
    return {"event": name, "level": level, **event, "timestamp": when}


def _as_line(_: WrappedLogger, __: str, event: EventDict) -> str:
    """`event key=value ...`: values with blanks or quotes in them are quoted. Never more than one line."""
    name = event.pop("event")
    return " ".join([str(name), *(f"{key}={_quoted(value)}" for key, value in event.items())])


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(char in text for char in " \"'=\\")
    return text if plain else repr(text)


def configure_logging(log_format: str = "auto", log_level: str = "info") -> None:
    """auto: lines on a terminal, JSON elsewhere."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            Repeats(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _in_order,
            structlog.processors.JSONRenderer() if as_json else _as_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def configured() -> bool:
    """Has this process a log? A command that only prints an answer has none."""
    return structlog.is_configured()


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--log-format and --log-level, the same at every command that runs for long."""
    command = click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="auto",
        show_default=True,
        help="text: one line an event. json: the same keys. auto: text on a terminal, json elsewhere.",
    )(command)
    return click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="info",
        show_default=True,
        help="The least that is written. Pages are never logged one by one: see the metrics.",
    )(command)

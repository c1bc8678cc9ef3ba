# SPDX-License-Identifier: Apache-2.0
"""Logs: one line, the event's name first, then key=value; or JSON with the same keys. Always on stderr.

Control path only: what happens to single pages is counted (metrics) and traced in memory, never logged.
"""

import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final

import click
import structlog

FORMATS: Final = ("auto", "text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def _as_line(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """`event key=value ...`: values with blanks or quotes in them are quoted."""
    name = event.pop("event")
    stamp = event.pop("timestamp")
    level = event.pop("level")
    words = [f"{key}={_quoted(value)}" for key, value in event.items()]
    return " ".join([stamp, level.ljust(7), str(name), *words])


def _quoted(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(char in text for char in ' "=\n') else text


def configure_logging(log_format: str = "auto", log_level: str = "info") -> None:
    """auto: lines on a terminal, JSON elsewhere."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if as_json else _as_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--log-format and --log-level, the same at every command that runs for long."""
    command = click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="auto",
        show_default=True,
        help="text: one line an event. json: the same keys. auto: text on a terminal.",
    )(command)
    return click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)(command)

# SPDX-License-Identifier: Apache-2.0
"""Every option of `pageserver serve`: its flag, its default, its meaning, once.

Each can be given in the environment too: PAGESERVER_SERVE_ and the flag's name, as in
PAGESERVER_SERVE_DATA_LISTEN. A flag wins.
"""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click

from pageferry.limits import (
    DEFAULT_SERVER_CONTROL_ADDRESS,
    DEFAULT_SERVER_DATA_ADDRESS,
    DEFAULT_SERVER_THREADS,
    DRAIN_TIMEOUT_MS,
)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--image",
        "images",
        required=True,
        multiple=True,
        metavar="NAME=PATH",
        help="An image file and the name that clients ask for. May be given several times.",
    ),
    click.option(
        "--regions",
        multiple=True,
        metavar="NAME=SIZE,...",
        help="Memory regions of a VM that has several, in image order: web-1=3G,1G. They add up to the file.",
    ),
    click.option(
        "--data-listen",
        default=DEFAULT_SERVER_DATA_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Data port, for pages: HOST:PORT (port 0: any) or unix:/PATH.",
    ),
    click.option(
        "--control-listen",
        default=DEFAULT_SERVER_CONTROL_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Control port: health and reflection.",
    ),
    click.option(
        "--metrics-listen",
        default=None,
        metavar="HOST:PORT",
        help="Prometheus metrics over HTTP.  [default: none]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 64),
        default=DEFAULT_SERVER_THREADS,
        show_default=True,
        help="Threads that serve pages. Each connection belongs to one of them.",
    ),
    click.option(
        "--drain-timeout",
        "drain_timeout_s",
        type=click.FloatRange(0),
        default=DRAIN_TIMEOUT_MS / 1000,
        show_default=True,
        metavar="SECONDS",
        help="How long SIGTERM waits for open calls to end.",
    ),
    click.option(
        "--ready-file",
        type=click.Path(path_type=Path),
        default=None,
        help="Written once all images are served: JSON with the addresses and the process number.",
    ),
)


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command all of them."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)

# SPDX-License-Identifier: Apache-2.0
"""Every option of `faultclient run`: its flag, its default, its meaning, once.

Each can be given in the environment too: FAULTCLIENT_RUN_ and the flag's name, as in
FAULTCLIENT_RUN_DATA_ADDRESS. A flag wins.
"""

import os
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click

from faultclient.session import Postcopy
from pageferry.limits import DEFAULT_CLIENT_CONTROL_ADDRESS, DEFAULT_SPIN_US

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DEFAULT_ATTACH_TIMEOUT_S: Final = 30.0

OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--socket",
        type=click.Path(path_type=Path),
        required=True,
        help="Unix socket on which the VMM hands its memory over. Made with mode 0600.",
    ),
    click.option(
        "--data-address",
        required=True,
        metavar="ADDRESS",
        help="Data port of the page server: HOST:PORT, dns:///HOST:PORT or unix:/PATH.",
    ),
    click.option("--image", required=True, metavar="NAME", help="Name of the image at the page server."),
    click.option(
        "--session", default="restore", show_default=True, help="Name of this restore, for status and logs."
    ),
    click.option(
        "--postcopy",
        type=click.Choice([choice.value for choice in Postcopy]),
        default=Postcopy.AT_ONCE.value,
        show_default=True,
        help="at-once: the guest may run while pages are remote. forbid: only when all are here.",
    ),
    click.option(
        "--background/--no-background",
        default=True,
        show_default=True,
        help="Also fetch pages nobody waits for. Without it the restore ends when the guest has touched all.",
    ),
    click.option(
        "--spin-us",
        type=click.IntRange(0, 1_000_000),
        default=DEFAULT_SPIN_US,
        show_default=True,
        help="Look again for this long before sleeping: saves about 8 us a fault and costs a core.",
    ),
    click.option(
        "--vmm-uid",
        "vmm_uids",
        type=int,
        multiple=True,
        help="Whose VMM may connect, beside root's and this user's own. May be given several times.",
    ),
    click.option(
        "--handoff-timeout",
        "handoff_timeout_s",
        type=click.FloatRange(0, min_open=True),
        default=None,
        metavar="SECONDS",
        help="Give up when no VMM has connected after this long.  [default: wait for ever]",
    ),
    click.option(
        "--attach-timeout",
        "attach_timeout_s",
        type=click.FloatRange(0, min_open=True),
        default=DEFAULT_ATTACH_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="Give up when the page server is out of reach for this long before the guest runs. Later never.",
    ),
    click.option(
        "--control-listen",
        default=DEFAULT_CLIENT_CONTROL_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Control port: HOST:PORT (port 0: any) or unix:/PATH.",
    ),
    click.option(
        "--metrics-listen",
        default=None,
        metavar="HOST:PORT",
        help="Prometheus metrics over HTTP.  [default: none]",
    ),
    click.option(
        "--ready-file",
        type=click.Path(path_type=Path),
        default=None,
        help="Written once the control port is up: JSON with its address and the process number.",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command all of them."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)


def allowed_uids(named: tuple[int, ...]) -> frozenset[int]:
    return frozenset({0, os.geteuid(), *named})

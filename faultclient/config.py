# SPDX-License-Identifier: Apache-2.0
"""Every option of `faultclient run`: its flag, its default, its meaning, once.

Each can be given in the environment too: FAULTCLIENT_RUN_ and the flag's name, as in
FAULTCLIENT_RUN_DATA_ADDRESS. A flag wins. click makes the variable's name of the parameter's, so a parameter
is called what its flag is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click

from faultclient.session import Postcopy
from pageferry.layout import FORM, Layout, parse_layout
from pageferry.limits import (
    DEFAULT_CLIENT_CONTROL_ADDRESS,
    DEFAULT_CLIENT_METRICS_ADDRESS,
    DEFAULT_SPIN_US,
)
from pageferry.names import IMAGE_NAME_RULE, is_image_name
from pageferry.reasons import PageferryError
from pageferry.records import SESSION_NAME
from pageferry.service.addresses import Address, AddressType
from pageferry.service.ready import Ready

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DEFAULT_ATTACH_TIMEOUT_S: Final = 30.0
DNS: Final = "dns:///"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What is made of flags and environment."""

    socket: Path
    data_address: str
    image: str
    session: str
    postcopy: Postcopy
    background: bool
    spin_us: int
    collapse: bool
    vmm_uid: int | None
    handoff_timeout_s: float | None
    attach_timeout_s: float
    control_listen: Address
    metrics_listen: Address | None
    ready: Ready
    progress: bool  # on a terminal, while pages arrive
    keep_registration: bool = False
    layout: Layout | None = None


def data_address(context: click.Context, param: click.Parameter, value: str) -> str:
    """The text, if it can be an address: names are resolved when there is a VM to serve."""
    try:
        address = Address.parse(value.removeprefix(DNS))
    except PageferryError as error:
        raise click.BadParameter(str(error), context, param) from error
    if address.path is None and address.port == 0:
        raise click.BadParameter(f"{value!r} has no port", context, param)
    return value


def image_name(context: click.Context, param: click.Parameter, value: str) -> str:
    if not is_image_name(value):
        raise click.BadParameter(f"an image's name has {IMAGE_NAME_RULE}", context, param)
    return value


def session_name(context: click.Context, param: click.Parameter, value: str) -> str:
    if SESSION_NAME.fullmatch(value) is None:
        raise click.BadParameter("a session's name has 1 to 63 of a-z, 0-9 and -", context, param)
    return value


def layout(context: click.Context, param: click.Parameter, value: str | None) -> Layout | None:
    try:
        return parse_layout(value) if value is not None else None
    except PageferryError as error:
        raise click.BadParameter(str(error), context, param) from error


class Seconds(click.FloatRange):
    """How long to wait: more than nothing, at most a year, which event loops can still count."""

    def __init__(self) -> None:
        super().__init__(0, 31_536_000, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        seconds = float(super().convert(value, param, context))
        if math.isnan(seconds):  # neither above nor below
            self.fail(f"{value!r} is no number", param, context)
        return seconds


# Those that `serve` has too.
SPIN_US: Final[Decorator] = click.option(
    "--spin-us",
    type=click.IntRange(0, 1_000_000),
    default=DEFAULT_SPIN_US,
    show_default=True,
    help="Microseconds to look again before sleeping: saves about 8 us a fault and costs a core.",
)
COLLAPSE: Final[Decorator] = click.option(
    "--collapse/--no-collapse",
    default=False,
    show_default=True,
    help="Once every page is here, make huge pages of 2 MiB of them again, and log how many. Takes "
    "CAP_SYS_NICE, and shared memory that its VMM has mapped under the shim.",
)
VMM_UID: Final[Decorator] = click.option(
    "--vmm-uid",
    type=click.IntRange(0),
    default=None,
    metavar="UID",
    help="The VMM's user, if it is neither root nor this one. The socket is given to that user, which "
    "takes root.",
)
KEEP_REGISTRATION: Final[Decorator] = click.option(
    "--keep-registration",
    is_flag=True,
    help="Stay, with the memory registered, for as long as the VMM lives: its pages can be poisoned later "
    "too. Without it that ends when every page is here and none is poisoned.",
)
METRICS_LISTEN: Final[Decorator] = click.option(
    "--metrics-listen",
    type=AddressType(),
    default=None,
    metavar="ADDRESS",
    help=f"Prometheus metrics at http://ADDRESS/metrics, usually {DEFAULT_CLIENT_METRICS_ADDRESS}. They "
    "hold no guest memory, so any address will do.  [default: none]",
)

OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--socket",
        type=click.Path(path_type=Path),
        required=True,
        help="Unix socket on which the VMM hands its memory over. Made with mode 0600, in a folder that "
        "is there.",
    ),
    click.option(
        "--data-address",
        required=True,
        callback=data_address,
        metavar="ADDRESS",
        help="Data port of the page server: HOST:PORT, dns:///HOST:PORT or unix:/PATH.",
    ),
    click.option(
        "--image",
        required=True,
        callback=image_name,
        metavar="NAME",
        help="Name of the image at the page server.",
    ),
    click.option(
        "--session",
        default="restore",
        show_default=True,
        callback=session_name,
        metavar="NAME",
        help="Name of this restore, for status and logs.",
    ),
    click.option(
        "--postcopy",
        type=click.Choice([Postcopy.AT_ONCE.value, Postcopy.FORBID.value]),
        default=Postcopy.AT_ONCE.value,
        show_default=True,
        help="at-once: the guest may run while pages are remote. forbid: only when all are here, for memory "
        "on a memfd or tmpfs; set PAGEFERRY_SHIM_TIMEOUT_MS so that the VMM waits that long.",
    ),
    click.option(
        "--background/--no-background",
        default=True,
        show_default=True,
        help="Also fetch pages nobody waits for. Without it the restore ends when the guest has touched all.",
    ),
    KEEP_REGISTRATION,
    click.option(
        "--layout",
        callback=layout,
        default=None,
        metavar="LAYOUT",
        help=f"Where the memory lies in the guest, so that a page can be named by guest address, if the VMM "
        f"does not say: {FORM}.",
    ),
    SPIN_US,
    COLLAPSE,
    VMM_UID,
    click.option(
        "--handoff-timeout",
        type=Seconds(),
        default=None,
        metavar="SECONDS",
        help="Give up when no VMM has connected after this long.  [default: wait for ever]",
    ),
    click.option(
        "--attach-timeout",
        type=Seconds(),
        default=DEFAULT_ATTACH_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="Give up when the page server is out of reach for this long before the guest runs. Later never.",
    ),
    click.option(
        "--control-listen",
        type=AddressType(),
        default=DEFAULT_CLIENT_CONTROL_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Control port (status, health, reflection), once a VM is served: HOST:PORT (port 0: any) or "
        "unix:/PATH.",
    ),
    METRICS_LISTEN,
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command all of them."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)

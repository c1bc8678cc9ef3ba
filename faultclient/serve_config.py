# SPDX-License-Identifier: Apache-2.0
"""Every option of `faultclient serve`; in the environment FAULTCLIENT_SERVE_ and the flag's name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click

from faultclient.config import (
    COLLAPSE,
    KEEP_REGISTRATION,
    METRICS_LISTEN,
    SPIN_US,
    VMM_UID,
    Decorator,
)
from pageferry.host.vmspec import ONWARD_FORM, VmSpec, check_apart, parse_vm
from pageferry.limits import DEFAULT_CLIENT_CONTROL_ADDRESS
from pageferry.reasons import PageferryError
from pageferry.service.addresses import Address, AddressType
from pageferry.service.ready import Ready

DEFAULT_STATE_DIR: Final = "/run/pageferry/client"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What is made of flags and environment."""

    vms: tuple[VmSpec, ...]
    control_listen: Address
    metrics_listen: Address | None
    state_dir: Path
    vmm_uid: int | None
    spin_us: int
    collapse: bool
    ready: Ready
    keep_registration: bool = False


def vm_specs(context: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[VmSpec, ...]:
    try:
        specs = tuple(parse_vm(text, onward=True) for text in value)
        check_apart(specs)
    except PageferryError as error:
        raise click.BadParameter(str(error), context, param) from error
    return specs


OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--vm",
        multiple=True,
        required=True,
        callback=vm_specs,
        metavar="SPEC",
        help=f"A VM that may come to this host: {ONWARD_FORM}. Once for each VM. onward: the socket of the "
        "page server that it is handed on to once it runs here, so that it can move on.",
    ),
    click.option(
        "--control-listen",
        type=AddressType(),
        default=DEFAULT_CLIENT_CONTROL_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Control port (sessions, health, reflection): HOST:PORT (port 0: any) or unix:/PATH.",
    ),
    METRICS_LISTEN,
    click.option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_STATE_DIR,
        show_default=True,
        metavar="FOLDER",
        help="Records of sessions, this process's alone. A tmpfs will do: it forgets with its host, as a "
        "guest does.",
    ),
    KEEP_REGISTRATION,
    SPIN_US,
    COLLAPSE,
    VMM_UID,
)


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command all of them."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)

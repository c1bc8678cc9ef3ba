# SPDX-License-Identifier: Apache-2.0
"""Every option of `pageserver serve`: its flag, its default, its meaning, once.

Each can be given in the environment too, as PAGESERVER_SERVE_ and the flag's name, for instance
PAGESERVER_SERVE_DATA_LISTEN; several images or regions then stand in one variable with blanks between. A flag
wins. A value that cannot be read is a usage error (exit code 64); what the system says of one that can is a
refusal with its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click

from pageferry.host.vmspec import VmSpec, check_apart, parse_vm
from pageferry.limits import (
    DEFAULT_SERVER_CONTROL_ADDRESS,
    DEFAULT_SERVER_DATA_ADDRESS,
    DEFAULT_SERVER_METRICS_ADDRESS,
    DEFAULT_SERVER_THREADS,
    DRAIN_TIMEOUT_MS,
    SERVER_THREADS_MAX,
)
from pageferry.reasons import PageferryError
from pageferry.service.addresses import Address, AddressType
from pageferry.service.ready import Ready
from pageserver.images import ImageSpec, parse_image, parse_poison, parse_regions

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

# On a tmpfs: what it tells is over when its host has started again.
DEFAULT_STATE_DIR: Final = Path("/run/pageferry/server")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What is made of flags and environment."""

    data_listen: Address
    control_listen: Address
    metrics_listen: Address | None
    threads: int
    drain_timeout_s: float
    ready: Ready
    progress: bool  # on a terminal, while images are read
    vms: tuple[VmSpec, ...] = ()
    vmm_uid: int | None = None
    state_dir: Path = DEFAULT_STATE_DIR


class Parsed(click.ParamType[Any]):
    """An option whose value one of our functions reads: its PageferryError is a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return self._parse(value) if isinstance(value, str) else value
        except PageferryError as error:
            self.fail(str(error), param, context)


OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--image",
        multiple=True,
        type=Parsed("image", parse_image),
        metavar="NAME=PATH",
        help="An image file, and the name that clients ask for. May be given several times.",
    ),
    click.option(
        "--regions",
        multiple=True,
        type=Parsed("regions", parse_regions),
        metavar="NAME=PAGES,...",
        help="Memory regions of a VM that hands over several, in image order: pages, or sizes with K, M, G "
        "or T. They add up to the file.  [default: one region]",
    ),
    click.option(
        "--poison",
        multiple=True,
        type=Parsed("poison", parse_poison),
        metavar="NAME=FILE",
        help="Where it is kept which pages of an image are lost; made when one is.  [default: beside the "
        "image, with .poison at its name's end]",
    ),
    click.option(
        "--vm",
        multiple=True,
        type=Parsed("vm", parse_vm),
        metavar="NAME,handoff=SOCKET,...",
        help="A VM that runs here and may be moved away: its name, the socket on which it hands its memory "
        "over (under the shim, with PAGEFERRY_SHIM_ROLE=track), and who stops and saves it: "
        "qemu=QMP_SOCKET, socket=ADAPTER_SOCKET or process. May be given several times.",
    ),
    click.option(
        "--vmm-uid",
        type=click.IntRange(0),
        default=None,
        metavar="UID",
        help="The VMMs' user, if it is neither root nor this one. Their hand-off sockets are given to that "
        "user, which takes root.",
    ),
    click.option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_STATE_DIR,
        show_default=True,
        metavar="FOLDER",
        help="Where the sessions of --vm are recorded, for the next page server. Made if it is not there.",
    ),
    click.option(
        "--data-listen",
        type=AddressType(),
        default=DEFAULT_SERVER_DATA_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Data port: pages, health, reflection. HOST:PORT (port 0: any) or unix:/PATH.",
    ),
    click.option(
        "--control-listen",
        type=AddressType(),
        default=DEFAULT_SERVER_CONTROL_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Control port: sessions, health, reflection. HOST:PORT (port 0: any) or unix:/PATH.",
    ),
    click.option(
        "--metrics-listen",
        type=AddressType(),
        default=None,
        metavar="ADDRESS",
        help=f"Prometheus metrics at http://ADDRESS/metrics, usually {DEFAULT_SERVER_METRICS_ADDRESS}. They "
        "hold no guest memory, so any address will do.  [default: none]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, SERVER_THREADS_MAX),
        default=DEFAULT_SERVER_THREADS,
        show_default=True,
        help="Threads that serve pages. Each connection belongs to one of them.",
    ),
    click.option(
        "--drain-timeout",
        type=click.FloatRange(0),
        default=DRAIN_TIMEOUT_MS / 1000,
        show_default=True,
        metavar="SECONDS",
        help="How long SIGTERM waits for open calls to end.",
    ),
)


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command all of them."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)


def with_regions(
    images: Sequence[ImageSpec],
    regions: Sequence[tuple[str, tuple[int, ...]]],
    poison: Sequence[tuple[str, Path]] = (),
) -> list[ImageSpec]:
    """--image, --regions and --poison put together. UsageError: they do not fit."""
    names = [image.name for image in images]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"Two images are named {name!r}; give each a name of its own.")
    _check_given("--regions", [name for name, _ in regions], names, "give all of its regions in one")
    _check_given("--poison", [name for name, _ in poison], names, "an image has one")
    return [
        replace(
            image,
            region_pages=dict(regions).get(image.name, ()),
            poison=dict(poison).get(image.name),
        )
        for image in images
    ]


def _check_given(option: str, given: Sequence[str], names: Sequence[str], remedy: str) -> None:
    for name in given:
        if given.count(name) > 1:
            raise click.UsageError(f"{option} is there twice for {name!r}; {remedy}.")
        if name not in names:
            raise click.UsageError(f"{option} names {name!r}; give --image {name}=PATH for it.")


def check_names(images: Sequence[ImageSpec], vms: Sequence[VmSpec]) -> None:
    """UsageError: there is nothing to serve, or two have one name or socket."""
    if not images and not vms:
        raise click.UsageError(
            "There is nothing to serve; give --image NAME=PATH or --vm NAME,handoff=SOCKET,..."
        )
    try:
        check_apart(list(vms))
    except PageferryError as error:
        raise click.UsageError(str(error)) from error
    taken = {image.name for image in images} & {vm.name for vm in vms}
    if taken:
        raise click.UsageError(f"An image and a VM are named {min(taken)!r}; give each a name of its own.")

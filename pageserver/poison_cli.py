# SPDX-License-Identifier: Apache-2.0
"""`pageserver poison`: what is lost for good."""

import click

from pageferry.limits import DEFAULT_SERVER_CONTROL_ADDRESS
from pageferry.service.addresses import Address
from pageferry.service.poison_options import after_option, log_option, page_options
from pageferry.units import PageRun


@click.group(short_help="Pages that are lost for good: make some, list them.")
def poison() -> None:
    """Poison: pages of an image, or of a VM that runs here, that are lost for good.

    A page that cannot be read any more (EIO: a bad sector, a memory error) is lost by itself. From then on it
    travels as lost and never as bytes, to whoever asks, also after a restart: of an image file the poison
    file beside it remembers.

    PAGES are page numbers in the image: 7, or 1024+16 for sixteen from 1024 on.
    """


@poison.command("add", short_help="Lose pages of an image.")
@click.argument("image")
@page_options(DEFAULT_SERVER_CONTROL_ADDRESS, "page server")
def poison_add(
    image: str,
    pages: tuple[PageRun, ...],
    guest_addresses: tuple[int, ...],
    address: Address,
    as_json: bool,
) -> None:
    """Lose PAGES of IMAGE, for ever. IMAGE is a name of --image or --vm of the running `pageserver serve`.

    Of a VM that moves away the next round tells its target; once it is handed over, ask the fault client
    there. What a guest has read already it keeps.

    \b
      pageserver poison add web-1 1024+16
      pageserver poison add web-1 --guest-address 0x7fe3a000
    """
    from pageferry.service.poison_commands import change, page_server, show
    from pageferry.v1.migrations_pb2 import PoisonRequest

    with page_server(address) as port:
        log_now = change(port, "PoisonPages", PoisonRequest(image=image), pages, guest_addresses)
    show(log_now, as_json=as_json, with_log=False)


@poison.command("list", short_help="List the pages of an image that are lost.")
@click.argument("image")
@page_options(DEFAULT_SERVER_CONTROL_ADDRESS, "page server")
@log_option
@after_option
def poison_list(
    image: str,
    pages: tuple[PageRun, ...],
    guest_addresses: tuple[int, ...],
    address: Address,
    as_json: bool,
    with_log: bool,
    after: int,
) -> None:
    """List the pages of IMAGE that are lost; of PAGES alone if some are named.

    \b
      pageserver poison list web-1
      pageserver poison list web-1 --log --json | jq .entries
    """
    from pageferry.service.poison_commands import listed, page_server, show
    from pageferry.v1.migrations_pb2 import PoisonRequest

    with page_server(address) as port:
        log_now = listed(port, PoisonRequest(image=image), pages, guest_addresses, after=after)
    show(log_now, as_json=as_json, with_log=with_log)

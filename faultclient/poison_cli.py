# SPDX-License-Identifier: Apache-2.0
"""`faultclient poison`: what is lost for good."""

from pathlib import Path

import click

from pageferry.limits import DEFAULT_CLIENT_CONTROL_ADDRESS
from pageferry.service.addresses import Address
from pageferry.service.poison_options import after_option, log_option, page_options
from pageferry.units import PageRun


@click.group(short_help="Pages that are lost for good: make some, end it, list them.")
def poison() -> None:
    """Poison: pages of a guest's memory that are lost for good.

    Nobody reads them again: an access raises SIGBUS in the VMM's thread, which is a machine check in the
    guest, and their bytes leave the memory. They stay so until they are cleared, over moves and restarts.

    PAGES are page numbers in the image: 7, or 1024+16 for sixteen from 1024 on.
    """


@poison.command("add", short_help="Lose pages of a guest that is served here.")
@click.argument("session")
@page_options(DEFAULT_CLIENT_CONTROL_ADDRESS, "fault client")
def poison_add(
    session: str,
    pages: tuple[PageRun, ...],
    guest_addresses: tuple[int, ...],
    address: Address,
    as_json: bool,
) -> None:
    """Lose PAGES of the guest of SESSION, from now on. The VMM is told, once a page.

    Needs a session that has attached, and its registration: that ends when every page is here, unless a page
    is poisoned, or `faultclient serve` was given --keep-registration.

    \b
      faultclient poison add move-7 1024+16
      faultclient poison add move-7 --guest-address 0x7fe3a000
    """
    change_poison("PoisonPages", session, pages, guest_addresses, address, as_json=as_json)


@poison.command("clear", short_help="Make lost pages fresh memory again.")
@click.argument("session")
@page_options(DEFAULT_CLIENT_CONTROL_ADDRESS, "fault client")
def poison_clear(
    session: str,
    pages: tuple[PageRun, ...],
    guest_addresses: tuple[int, ...],
    address: Address,
    as_json: bool,
) -> None:
    """Make those of PAGES that are poisoned fresh memory: zeros. Their old bytes never return.

    \b
      faultclient poison clear move-7 1024+16
    """
    change_poison("ClearPoison", session, pages, guest_addresses, address, as_json=as_json)


def change_poison(
    method: str,
    session: str,
    pages: tuple[PageRun, ...],
    guest_addresses: tuple[int, ...],
    address: Address,
    *,
    as_json: bool,
) -> None:
    from pageferry.service.poison_commands import change, fault_client, show
    from pageferry.v1.migrations_pb2 import PoisonRequest

    with fault_client(address) as port:
        log_now = change(port, method, PoisonRequest(session=session), pages, guest_addresses)
    show(log_now, as_json=as_json, with_log=False)


@poison.command("list", short_help="List the pages that are lost, and what has happened to them.")
@click.argument("session")
@page_options(DEFAULT_CLIENT_CONTROL_ADDRESS, "fault client")
@log_option
@after_option
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Write all of them as the poison file of the image that this memory is saved to: IMAGE.poison.",
)
def poison_list(
    session: str,
    pages: tuple[PageRun, ...],
    guest_addresses: tuple[int, ...],
    address: Address,
    as_json: bool,
    with_log: bool,
    after: int,
    save: Path | None,
) -> None:
    """List the pages of SESSION that are poisoned; of PAGES alone if some are named.

    \b
      faultclient poison list move-7
      faultclient poison list move-7 --log --json | jq .entries
      faultclient poison list move-7 --save /images/web-1.ram.poison
    """
    from pageferry.service.poison_commands import fault_client, listed, show
    from pageferry.service.poison_commands import save as save_to
    from pageferry.v1.migrations_pb2 import PoisonRequest, SessionName

    if save is not None and (pages or guest_addresses):
        raise click.UsageError("--save takes all that is poisoned: name no pages.")
    with fault_client(address) as port:
        log_now = listed(port, PoisonRequest(session=session), pages, guest_addresses, after=after)
        if save is not None:
            total = port.ask("GetSession", SessionName(session=session)).pages_total
            save_to(save, total, log_now)
    show(log_now, as_json=as_json, with_log=with_log)

# SPDX-License-Identifier: Apache-2.0
"""The options of `poison add`, `clear` and `list`, the same at both ends. No grpc: it is imported when a
command is called."""

from collections.abc import Callable
from functools import reduce
from typing import Any, Final

import click

from pageferry.layout import parse_number
from pageferry.reasons import PageferryError
from pageferry.service.addresses import AddressType
from pageferry.units import PageRun

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Pages(click.ParamType[PageRun]):
    name = "pages"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> PageRun:
        if isinstance(value, PageRun):
            return value
        first, plus, count = str(value).partition("+")
        try:
            return PageRun(int(first, 0), int(count, 0) if plus else 1)
        except ValueError:
            self.fail(f"{value!r} is no page: write 7, or 1024+16 for sixteen from 1024 on", param, context)


class GuestAddress(click.ParamType[int]):
    name = "guest address"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_number(str(value))
        except PageferryError:
            self.fail(f"{value!r} is no address: write 0x7fe3a000", param, context)


def page_options(address: str, who: str) -> Decorator:
    """PAGES, --guest-address, --address and --json. `address`: the default of the control port."""
    options: tuple[Decorator, ...] = (
        click.argument("pages", nargs=-1, type=Pages()),
        click.option(
            "--guest-address",
            "guest_addresses",
            type=GuestAddress(),
            multiple=True,
            metavar="ADDRESS",
            help="A page by the guest-physical address of a byte in it, as machine checks have it. May be "
            "given several times.",
        ),
        click.option(
            "--address",
            type=AddressType(),
            default=address,
            show_default=True,
            metavar="ADDRESS",
            help=f"Control port of the {who}: HOST:PORT or unix:/PATH.",
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON object."),
    )
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


log_option: Final[Decorator] = click.option(
    "--log", "with_log", is_flag=True, help="What has happened too, in order: each loss has a number, from 1."
)
after_option: Final[Decorator] = click.option(
    "--after",
    type=click.IntRange(0),
    default=0,
    metavar="NUMBER",
    help="With --log: what came after this one.",
)

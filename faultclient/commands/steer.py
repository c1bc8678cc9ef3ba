# SPDX-License-Identifier: Apache-2.0
"""`faultclient switch-over`, `cancel` and `release`: what an operator may ask of a move that is under way."""

import asyncio
from collections.abc import Callable

import click

from faultclient.commands.control import Control, fault_client, page_server
from faultclient.commands.views import in_words
from pageferry.v1 import migrations_pb2


def switch_over(session: str, target: str) -> None:
    """PageferryError: refused, or nobody answers; so of the other two."""
    _ask(fault_client, target, "SwitchOver", migrations_pb2.SessionName(session=session))


def cancel(session: str, target: str, source: str | None, force_image: str) -> None:
    """The target decides; the source is asked in its place where that is said."""
    request = migrations_pb2.EndSessionRequest(session=session, force_image=force_image)
    if source is None:
        _ask(fault_client, target, "CancelSession", request)
    else:
        _ask(page_server, source, "CancelSession", request)


def release(session: str, source: str, force_image: str) -> None:
    request = migrations_pb2.EndSessionRequest(session=session, force_image=force_image)
    _ask(page_server, source, "ReleaseSession", request)


def _ask(port: Callable[[str], Control], address: str, method: str, request: object) -> None:
    """Asks, and says how the session stands now."""
    side, session = asyncio.run(_asked(port, address, method, request))
    words = in_words(side, session)
    click.echo(f"{words}  cancel requested" if session.cancel_requested else words)


async def _asked(
    port: Callable[[str], Control], address: str, method: str, request: object
) -> tuple[str, migrations_pb2.Session]:
    control = port(address)  # in the loop that it belongs to
    try:
        return control.side, await control.ask(method, request)
    finally:
        await control.close()

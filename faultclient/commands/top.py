# SPDX-License-Identifier: Apache-2.0
"""`faultclient top`: the sessions of page servers and fault clients, looked at again and again.

On a terminal a picture of the whole screen; elsewhere a line for each change, for people or as JSON. look()
is once; `faultclient status` is that, of one fault client.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Final, Protocol

import click
from rich.console import Console
from rich.live import Live

from faultclient.commands.ports import Port, rows_of
from faultclient.commands.table import as_picture
from faultclient.commands.views import in_words
from faultclient.commands.words import as_json
from pageferry.v1 import migrations_pb2

# Characters a line where there is no terminal that has a width.
WIDTH: Final = 200


class Shown(Protocol):
    def looked(self, ports: Sequence[Port]) -> None:
        """All of them have been asked."""


def look(ports: Sequence[Port], *, as_lines: bool, given: bool) -> None:
    """PageferryError, after what there was: a port that was `given` does not answer, or none of all does."""
    asyncio.run(look_once(ports))
    if as_lines:
        Lines(as_lines=True).looked(ports)
    elif any(port.error is None for port in ports):
        width = Console().width if sys.stdout.isatty() else WIDTH
        Console(width=width, highlight=False).print(as_picture(ports, rows_of(ports), width))
    silent = [port.error for port in ports if port.error is not None]
    if silent and (given or len(silent) == len(ports)):
        raise silent[0]


async def look_once(ports: Sequence[Port]) -> None:
    try:
        await asyncio.gather(*(port.look() for port in ports))
    finally:
        for port in ports:
            await port.close()


async def looking_on(ports: Sequence[Port], shown: Shown, interval_s: float) -> None:
    """Until somebody ends it."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    looking = asyncio.create_task(look_on(ports, shown, interval_s))
    try:
        await asyncio.wait(
            [looking, ending := asyncio.create_task(over.wait())], return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        ending.cancel()
        looking.cancel()
        await asyncio.wait([looking])
        for port in ports:
            await port.close()
    if not looking.cancelled():
        looking.result()


async def look_on(ports: Sequence[Port], shown: Shown, interval_s: float) -> None:
    while True:
        await asyncio.gather(*(port.look() for port in ports))
        shown.looked(ports)
        await asyncio.sleep(interval_s)


class Lines:
    """What has changed since the last look, a line each."""

    def __init__(self, *, as_lines: bool) -> None:
        self._as_json = as_lines
        self._shown: dict[tuple[str, str, str], tuple[int, ...]] = {}
        self._silent: set[str] = set()

    def looked(self, ports: Sequence[Port]) -> None:
        before, self._shown = self._shown, {}
        for port in ports:
            self._say_silence(port)
            for session in port.sessions if port.error is None else ():
                key = (port.side, port.address, session.session)
                now = (session.revision, session.pages_settled, session.round, session.wire_bytes)
                self._shown[key] = now
                if before.get(key) != now:
                    self._say(port, session)

    def _say(self, port: Port, session: migrations_pb2.Session) -> None:
        if self._as_json:
            click.echo(json.dumps({"side": port.side, "address": port.address, **as_json(session)}))
        else:
            words = in_words(port.side, session)
            click.echo(f"{datetime.now():%H:%M:%S}  {session.session}  {session.image}  {words}")

    def _say_silence(self, port: Port) -> None:
        """For people, and once."""
        if port.error is None:
            self._silent.discard(port.address)
        elif port.address not in self._silent:
            self._silent.add(port.address)
            click.echo(str(port.error), err=True)


class Screen:
    """The whole of a terminal; what was there before comes back at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def looked(self, ports: Sequence[Port]) -> None:
        width, height = self._console.size
        self._live.update(as_picture(ports, rows_of(ports), width, height), refresh=True)

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def watch(ports: Sequence[Port], *, as_lines: bool, interval_s: float) -> None:
    """Until Ctrl-C."""
    if as_lines or not sys.stdout.isatty():
        asyncio.run(looking_on(ports, Lines(as_lines=as_lines), interval_s))
        return
    with Screen() as screen:
        asyncio.run(looking_on(ports, screen, interval_s))


def ports_of(targets: Sequence[str], sources: Sequence[str]) -> list[Port]:
    return [
        *(Port("source", address) for address in sources),
        *(Port("target", address) for address in targets),
    ]

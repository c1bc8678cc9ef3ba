# SPDX-License-Identifier: Apache-2.0
"""`faultclient status`: the sessions of a running fault client, as a table or as JSON."""

import sys
from typing import Final

import click
import grpc
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pageferry.reasons import REASON_TRAILER, PageferryError, reason_from_status
from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2, pages_pb2

TIMEOUT_S: Final = 5.0
# Characters a line where there is no terminal that has a width.
WIDTH: Final = 200


def sessions(address: str) -> list[migrations_pb2.Session]:
    """PageferryError: nobody answers at the address, or not with sessions."""
    with grpc.insecure_channel(address) as channel:
        stub = faultclient_pb2_grpc.FaultClientServiceStub(channel)
        request = migrations_pb2.WatchSessionsRequest(once=True)
        try:
            return list(stub.WatchSessions(request, timeout=TIMEOUT_S))
        except grpc.RpcError as error:
            code, _ = error.code().value
            trailers = {item.key: str(item.value) for item in error.trailing_metadata() or ()}
            raise PageferryError(
                reason_from_status(code, trailers.get(REASON_TRAILER)),
                f"the fault client at {address} did not answer: {error.details()}",
                "is `faultclient run` there, and has its VMM come? Its log names the control address",
            ) from error


def as_table(listed: list[migrations_pb2.Session]) -> Table:
    table = Table("session", "image", "phase", "pages", "faults", "waiting", "blocked", "message")
    for session in listed:
        share = session.pages_settled / session.pages_total if session.pages_total else 0.0
        cells = (
            session.session,
            session.image,
            state(session),
            f"{session.pages_settled} of {session.pages_total} ({share:.0%})",
            str(session.faults),
            str(session.faults_waiting),
            f"{session.blocktime_us / 1000:.1f} ms",
            session.message,
        )
        table.add_row(*map(Text, cells))  # a name with brackets is no markup
    return table


def state(session: migrations_pb2.Session) -> str:
    """The phase, and why nothing moves or why it failed."""
    words = [pages_pb2.Phase.Name(session.phase).removeprefix("PHASE_")]
    if session.paused:
        words += ["PAUSED", pages_pb2.Reason.Name(session.paused).removeprefix("REASON_")]
    if session.failure:
        words.append(pages_pb2.Reason.Name(session.failure).removeprefix("REASON_"))
    return " ".join(words)


def show(address: str, *, as_json: bool) -> None:
    listed = sessions(address)
    if as_json:
        for session in listed:
            click.echo(MessageToJson(session, indent=None, always_print_fields_with_no_presence=True))
    elif listed:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(as_table(listed))
    else:
        click.echo("no session")

# SPDX-License-Identifier: Apache-2.0
"""`faultclient status`: the sessions of a running fault client, as a table or as JSON."""

from typing import Final

import click
import grpc
from google.protobuf.json_format import MessageToDict, MessageToJson
from rich.console import Console
from rich.table import Table

from pageferry.reasons import REASON_TRAILER, PageferryError, reason_from_status
from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2

TIMEOUT_S: Final = 5.0


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
        shown = MessageToDict(session)
        share = session.pages_settled / session.pages_total if session.pages_total else 0.0
        table.add_row(
            session.session,
            session.image,
            str(shown.get("phase", "")).removeprefix("PHASE_"),
            f"{session.pages_settled} of {session.pages_total} ({share:.0%})",
            str(session.faults),
            str(session.faults_waiting),
            f"{session.blocktime_us / 1000:.1f} ms",
            session.message,
        )
    return table


def show(address: str, *, as_json: bool) -> None:
    listed = sessions(address)
    if as_json:
        for session in listed:
            click.echo(MessageToJson(session, indent=None, always_print_fields_with_no_presence=True))
    elif listed:
        Console().print(as_table(listed))
    else:
        click.echo("no session")

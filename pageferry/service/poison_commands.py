# SPDX-License-Identifier: Apache-2.0
"""`poison add`, `clear` and `list`, the same at both ends: what is asked, and what is shown of it."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import grpc

from pageferry import poison_file
from pageferry.poison_file import PoisonRecord
from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.refusals import refused
from pageferry.units import PageRun, from_pairs, to_pairs
from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2, migrations_pb2_grpc

CALL_S: Final = 30.0
# Of one request, which has to be short.
ASKED_MAX: Final = 2000
ANSWER_BYTES_MAX: Final = 1 << 28
ENTRY_WORDS: Final = ("was_mapped", "mapped", "held")

# -------------------------------------------------------------------------------------------------- the calls


class Port:
    """One control port, while its `with` lasts."""

    def __init__(self, address: Address, stub: Callable[[grpc.Channel], Any], who: str) -> None:
        options = (("grpc.max_receive_message_length", ANSWER_BYTES_MAX),)
        self._who = f"the {who} at {address}"
        self._channel = grpc.insecure_channel(str(address), options=options)
        self._stub = stub(self._channel)

    def ask(self, method: str, request: Any) -> Any:
        """PageferryError: it was refused, or nobody answers."""
        try:
            return getattr(self._stub, method)(request, timeout=CALL_S)
        except grpc.RpcError as error:
            raise refused(error, self._who) from error

    def __enter__(self) -> "Port":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def fault_client(address: Address) -> Port:
    return Port(address, faultclient_pb2_grpc.FaultClientServiceStub, "fault client")


def page_server(address: Address) -> Port:
    return Port(address, migrations_pb2_grpc.MigrationServiceStub, "page server")


def change(
    port: Port,
    method: str,
    about: migrations_pb2.PoisonRequest,
    pages: Sequence[PageRun],
    guest_addresses: Sequence[int],
) -> migrations_pb2.PoisonLog:
    """Adds or clears: `about` says of what. The log as it is then. UsageError: no page is named."""
    if not pages and not guest_addresses:
        raise click.UsageError("Name PAGES, or --guest-address.")
    answer = migrations_pb2.PoisonLog()
    for request in requests(about, pages, guest_addresses):
        answer = port.ask(method, request)
    return answer


def requests(
    about: migrations_pb2.PoisonRequest, pages: Sequence[PageRun], guest_addresses: Sequence[int]
) -> Iterator[migrations_pb2.PoisonRequest]:
    for at in range(0, len(pages), ASKED_MAX):
        yield asked(about, pages=pages[at : at + ASKED_MAX])
    for at in range(0, len(guest_addresses), ASKED_MAX):
        yield asked(about, guest_addresses=guest_addresses[at : at + ASKED_MAX])


def asked(
    about: migrations_pb2.PoisonRequest, pages: Sequence[PageRun] = (), guest_addresses: Sequence[int] = ()
) -> migrations_pb2.PoisonRequest:
    request = migrations_pb2.PoisonRequest()
    request.CopyFrom(about)
    request.runs.extend(to_pairs(pages))
    request.guest_addresses.extend(guest_addresses)
    return request


def listed(
    port: Port,
    about: migrations_pb2.PoisonRequest,
    pages: Sequence[PageRun] = (),
    guest_addresses: Sequence[int] = (),
    *,
    after: int = 0,
) -> migrations_pb2.PoisonLog:
    """With all entries after that one."""
    request = asked(about, pages, guest_addresses)
    request.after_seq = after
    answer = port.ask("ListPoison", request)
    entries = list(answer.entries)
    while answer.entries and entries[-1].seq < answer.seq:
        request.after_seq = entries[-1].seq
        answer = port.ask("ListPoison", request)
        entries.extend(answer.entries)
    return migrations_pb2.PoisonLog(seq=answer.seq, runs=answer.runs, entries=entries)


# -------------------------------------------------------------------------------------------- what is shown


def show(log: migrations_pb2.PoisonLog, *, as_json: bool, with_log: bool) -> None:
    runs = from_pairs(log.runs)
    if as_json:
        told: dict[str, Any] = {"seq": log.seq, "runs": [[run.first_page, run.page_count] for run in runs]}
        if with_log:
            told["entries"] = [entry_fields(entry) for entry in log.entries]
        click.echo(json.dumps(told))
        return
    pages = sum(run.page_count for run in runs)
    click.echo(f"{pages} {'page is' if pages == 1 else 'pages are'} poisoned")
    for run in runs:
        click.echo(f"  {run_text(run)}")
    for entry in log.entries if with_log else ():
        click.echo(f"{entry.seq:>6}  {entry_text(entry)}")


def run_text(run: PageRun) -> str:
    return f"{run.first_page}" if run.page_count == 1 else f"{run.first_page}+{run.page_count}"


def entry_text(entry: migrations_pb2.PoisonEntry) -> str:
    words = ["cleared" if entry.cleared else "lost", run_text(PageRun(entry.page, entry.page_count))]
    return "  ".join([*words, *(word.replace("_", " ") for word in ENTRY_WORDS if getattr(entry, word))])


def entry_fields(entry: migrations_pb2.PoisonEntry) -> dict[str, Any]:
    """Every field by its name in the contract."""
    return {field.name: getattr(entry, field.name) for field in entry.DESCRIPTOR.fields}


def save(path: Path, page_count: int, log: migrations_pb2.PoisonLog) -> None:
    """As the poison file of the image that this memory is saved to. PageferryError: there is another."""
    if page_count == 0:
        raise PageferryError(
            Reason.WRONG_PHASE,
            "the session has not attached yet: its memory has no size",
            "wait until it has",
        )
    poison_file.store(path, PoisonRecord(page_count, tuple(from_pairs(log.runs))))
    click.echo(f"{path} is the poison file of a saved image", err=True)

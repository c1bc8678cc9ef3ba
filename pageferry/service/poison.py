# SPDX-License-Identifier: Apache-2.0
"""PoisonRequest and PoisonLog of the contract, the same at both ends."""

from collections.abc import Sequence
from typing import Final

from pageferry.layout import Layout, unknown_layout
from pageferry.poison_log import PoisonEntry, PoisonLog, What
from pageferry.reasons import PageferryError, Reason
from pageferry.units import PageRun, common, from_pairs, merge, to_pairs
from pageferry.v1 import migrations_pb2

ENTRIES_MAX: Final = 4096


def asked_pages(
    request: migrations_pb2.PoisonRequest, page_count: int, layout: Layout | None, vm: str
) -> list[PageRun]:
    """The pages that a request names, by number or by guest address, in order; none for none. PageferryError:
    BAD_REQUEST, OUT_OF_IMAGE, or UNSUPPORTED where nobody knows the VM's layout."""
    try:
        runs = from_pairs(request.runs)
    except ValueError as error:
        raise PageferryError(
            Reason.BAD_REQUEST, f"runs are no pairs of first page and count: {error}", "send such pairs"
        ) from error
    if request.guest_addresses and layout is None:
        raise unknown_layout(vm)
    if layout is not None:
        runs += [PageRun(layout.page_of(address), 1) for address in request.guest_addresses]
    merged = merge(runs)
    if merged and merged[-1].end_page > page_count:
        raise PageferryError(
            Reason.OUT_OF_IMAGE,
            f"page {merged[-1].end_page - 1} is past the end of {vm}, which has {page_count} pages",
            "name pages of the image",
        )
    return merged


def some(runs: Sequence[PageRun]) -> Sequence[PageRun]:
    """PageferryError: there is none."""
    if not runs:
        raise PageferryError(Reason.BAD_REQUEST, "no page is named", "name runs or guest addresses")
    return runs


def as_log(
    log: PoisonLog, poisoned: Sequence[PageRun], after_seq: int, only: Sequence[PageRun] = ()
) -> migrations_pb2.PoisonLog:
    """`poisoned`: what is so now. `only` these pages, as asked_pages() has them; none: all."""
    entries = [as_entry(entry) for entry in log.after(after_seq, ENTRIES_MAX, only)]
    runs = to_pairs(common(poisoned, only) if only else poisoned)
    return migrations_pb2.PoisonLog(seq=log.seq, runs=runs, entries=entries)


def as_entry(entry: PoisonEntry) -> migrations_pb2.PoisonEntry:
    return migrations_pb2.PoisonEntry(
        seq=entry.seq,
        page=entry.run.first_page,
        page_count=entry.run.page_count,
        cleared=What.CLEARED in entry.what,
        was_mapped=What.WAS_MAPPED in entry.what,
        mapped=What.MAPPED in entry.what,
        held=What.HELD in entry.what,
    )

# SPDX-License-Identifier: Apache-2.0
"""What both ends say of lost pages: where pages lie in the guest, the log, the file beside an image."""

import json
import random
from pathlib import Path
from typing import Any, cast

import pytest

from pageferry import poison_file
from pageferry.layout import GuestRegion, layout_of, parse_layout, parse_number, pc_layout
from pageferry.poison_file import PoisonRecord
from pageferry.poison_log import PoisonLog, What
from pageferry.reasons import PageferryError, Reason
from pageferry.service.poison import ENTRIES_MAX, as_log
from pageferry.service.poison_commands import Port, listed
from pageferry.units import PageRun, common, from_pairs, minus
from pageferry.v1 import migrations_pb2

GIB = 1 << 30
MIB = 1 << 20

# ---------------------------------------------------------------------------------------------------- layouts


def test_addresses_and_pages() -> None:
    layout = parse_layout("0:3G+4G:5G")
    assert layout.length_bytes == 8 * GIB
    known = ((0, 0), (4095, 0), (3 * GIB - 1, 786431), (4 * GIB, 786432), (9 * GIB - 1, 2097151))
    for address, page in known:
        assert layout.page_of(address) == page
        assert layout.address_of(page) == address & ~4095
    for nowhere in (3 * GIB, 4 * GIB - 1, 9 * GIB):
        with pytest.raises(PageferryError, match="no memory at") as caught:
            layout.page_of(nowhere)
        assert caught.value.reason is Reason.OUT_OF_IMAGE
    with pytest.raises(ValueError):
        layout.address_of(2097152)
    layout.check(8 * GIB)
    with pytest.raises(PageferryError) as refused:
        layout.check(4 * GIB)
    assert refused.value.reason is Reason.MISMATCH
    assert str(layout) == "0x0:0xc0000000+0x100000000:0x140000000"
    assert parse_layout(str(layout)) == layout


def test_the_image_s_order_is_its_own() -> None:
    layout = parse_layout("4G:1M+0:1M")
    assert layout.page_of(0) == 256
    assert layout.address_of(0) == 4 * GIB


@pytest.mark.parametrize(
    "text", ["", "3G", "0:3G+", "0:x", "0:1000", "5:4096", "0:0", "0:2M+1M:2M", "0:4096+0:4096", "-1:4096",
             "0xfffffffffffff000:8192", "0:1Z"],
)  # fmt: skip
def test_no_layouts(text: str) -> None:
    with pytest.raises(PageferryError) as caught:
        parse_layout(text)
    assert caught.value.reason is Reason.BAD_REQUEST
    assert caught.value.remedy


NUMBERS = [("7", 7), ("0x1f", 31), ("2K", 2048), ("1g", GIB), (" 4T ", 4 << 40)]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_numbers(text: str, number: int) -> None:
    assert parse_number(text) == number


def test_a_pc_s_memory_goes_on_above_4_gib() -> None:
    assert pc_layout(2 * GIB, 3 * GIB).regions == (GuestRegion(0, 2 * GIB),)
    assert pc_layout(6 * GIB, 3 * GIB).regions == (GuestRegion(0, 3 * GIB), GuestRegion(4 * GIB, 3 * GIB))


def test_from_a_hand_off() -> None:
    assert layout_of([(0, MIB), (4 * GIB, MIB)]) == parse_layout("0:1M+4G:1M")
    assert layout_of([(0, MIB), (None, MIB)]) is None
    assert layout_of([(0, MIB), (4096, MIB)]) is None  # that cannot be: it is not looked at


# ---------------------------------------------------------------------------------------------- sets of pages


def test_common_and_minus_against_sets() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)

    def some() -> list[PageRun]:
        return [PageRun(numbers.randrange(60), numbers.randrange(1, 9)) for _ in range(numbers.randrange(12))]

    def pages(runs: list[PageRun]) -> set[int]:
        return {page for run in runs for page in range(run.first_page, run.end_page)}

    for _ in range(500):
        left, right = some(), some()
        assert pages(common(left, right)) == pages(left) & pages(right)
        assert pages(minus(left, right)) == pages(left) - pages(right)
        for runs in (common(left, right), minus(left, right)):
            assert runs == sorted(runs)
            assert sum(run.page_count for run in runs) == len(pages(runs))


def test_a_log_is_read_from_where_one_was() -> None:
    log = PoisonLog()
    assert (log.seq, list(log.after(0, 10))) == (0, [])
    for page in range(5):
        log.add(PageRun(page, 1))
    log.add(PageRun(2, 2), What.CLEARED)
    log.add(PageRun(1 << 40, 1), What.WAS_MAPPED | What.HELD)
    assert log.seq == 7
    assert [entry.seq for entry in log.after(0, 4)] == [1, 2, 3, 4]
    assert [entry.seq for entry in log.after(4, 100)] == [5, 6, 7]
    assert list(log.after(7, 100)) == list(log.after(1000, 5)) == []
    *_, cleared, last = log.after(0, 100)
    assert cleared.what is What.CLEARED and cleared.run == PageRun(2, 2)
    assert last.what == What.WAS_MAPPED | What.HELD and last.run == PageRun(1 << 40, 1)


def test_a_log_of_some_pages_is_no_part_of_its_beginning() -> None:
    """What was asked for lay beyond the entries that one answer may have, and was not found."""
    log = PoisonLog()
    for page in range(ENTRIES_MAX + 10):
        log.add(PageRun(page, 1))
    log.add(PageRun(3, 2), What.CLEARED)
    last = ENTRIES_MAX + 9

    def told(after_seq: int, *only: PageRun) -> list[int]:
        return [entry.seq for entry in as_log(log, [], after_seq, only).entries]

    assert told(0, PageRun(4, 1), PageRun(last, 1)) == [5, last + 1, last + 2]
    assert told(5, PageRun(4, 1), PageRun(last, 1)) == [last + 1, last + 2]
    assert told(0, PageRun(last + 1, 7)) == []
    assert told(0) == list(range(1, ENTRIES_MAX + 1))
    assert told(0, PageRun(0, last)) == list(range(1, ENTRIES_MAX + 1))
    assert told(ENTRIES_MAX, PageRun(0, last)) == [*range(ENTRIES_MAX + 1, last + 1), last + 2]


@pytest.mark.parametrize("pages", [[], [PageRun(0, 1 << 20)], [PageRun(2, 1)], [PageRun(1 << 20, 1)]])
def test_who_lists_pages_asks_until_all_is_told(pages: list[PageRun]) -> None:
    log = PoisonLog()
    for number in range(2 * ENTRIES_MAX + 100):
        log.add(PageRun(number % 5, 1))

    class Asked:
        def ask(self, method: str, request: migrations_pb2.PoisonRequest) -> migrations_pb2.PoisonLog:
            return as_log(log, [], request.after_seq, from_pairs(request.runs))

    found = listed(cast(Port, Asked()), migrations_pb2.PoisonRequest(session="s"), pages, after=7)
    wanted = [entry.seq for entry in log.after(7, log.seq) if not pages or entry.run.overlaps(pages[0])]
    assert [entry.seq for entry in found.entries] == wanted
    assert found.seq == log.seq


# -------------------------------------------------------------------------------------------- the poison file

RECORD = PoisonRecord(512, (PageRun(100, 4), PageRun(7, 1)), 0x1234, (PageRun(100, 2),))


def test_a_poison_file_there_and_back(tmp_path: Path) -> None:
    path = poison_file.beside(tmp_path / "vm.ram")
    assert path.name == "vm.ram.poison"
    assert poison_file.load(path) is None
    poison_file.store(path, RECORD)
    assert poison_file.load(path, 512) == RECORD
    assert json.loads(path.read_text()) == {
        "format": "pageferry-poison-1",
        "pages": 512,
        "content_id": "0000000000001234",
        "runs": [[100, 4], [7, 1]],
        "left_out": [[100, 2]],
    }
    poison_file.store(path, PoisonRecord(512))
    assert poison_file.load(path) == PoisonRecord(512)
    assert list(tmp_path.iterdir()) == [path]


GOOD: dict[str, Any] = {
    "format": "pageferry-poison-1", "pages": 512, "content_id": None, "runs": [[1, 2]], "left_out": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json.dumps(GOOD)[:-3],
        *(
            json.dumps(GOOD | changed)
            for changed in (
                {"format": "pageferry-poison-2"},
                {"pages": 0},
                {"pages": "512"},
                {"content_id": 7},
                {"content_id": "g"},
                {"content_id": "1" * 17},
                {"runs": [[511, 2]]},
                {"runs": [[1, 0]]},
                {"runs": [[1, 2, 3]]},
                {"runs": [[1, True]]},
                {"runs": [[1, 2], [2, 1]]},
                {"runs": {"1": 2}},
                {"left_out": [[7, 1]]},
            )
        ),
        json.dumps({name: value for name, value in GOOD.items() if name != "runs"}),
    ],
)
def test_one_that_cannot_be_understood_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vm.poison"
    path.write_text(text)
    with pytest.raises(PageferryError) as caught:
        poison_file.load(path, 512)
    assert caught.value.reason is Reason.MISMATCH
    assert str(path) in str(caught.value)


def test_one_of_another_size_is_refused(tmp_path: Path) -> None:
    poison_file.store(tmp_path / "vm.poison", RECORD)
    with pytest.raises(PageferryError, match="it is of 512 pages, and the image has 513"):
        poison_file.load(tmp_path / "vm.poison", 513)


def test_one_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(PageferryError) as folder:
        poison_file.load(tmp_path)
    with pytest.raises(PageferryError) as nowhere:
        poison_file.store(tmp_path / "no" / "x", RECORD)
    assert folder.value.reason is nowhere.value.reason is Reason.BAD_REQUEST
    (tmp_path / "vm.poison.new").symlink_to("/dev/full")
    with pytest.raises(PageferryError) as full:
        poison_file.store(tmp_path / "vm.poison", RECORD)
    assert full.value.reason is Reason.NO_MEMORY
    assert not (tmp_path / "vm.poison").exists()

# SPDX-License-Identifier: Apache-2.0
"""What the tests with the real guest rest on, as far as it needs no guest."""

import os
from pathlib import Path

import pytest

from tests.support.console import Console, ConsoleError, Heartbeat, missing_beats
from tests.support.qemu_versions import FetchError, mirror_of
from tests.support.ramfile import copy_sparse
from tests.support.shape import GuestShape
from tests.support.witness import allocated_bytes

BEAT = "HB {} verified=10 rewritten=1 errors=0 epoch=0 distinct=10 ms=1234\n"


def read_console(text: str, tail: str = "") -> Console:
    reader, writer = os.pipe()
    console = Console(reader, tail)
    os.write(writer, text.encode())
    os.close(writer)
    console.finish()
    os.close(reader)
    return console


def test_a_line_cut_by_the_stop_is_joined() -> None:
    """The source's console ends in the middle of a line; the destination's begins with the rest of it."""
    line = BEAT.format(7)
    for cut in range(len(line)):
        source = read_console(BEAT.format(6) + line[:cut])
        destination = read_console(line[cut:] + BEAT.format(8), source.tail)
        assert [beat.number for beat in source.beats] == [6]
        assert missing_beats(destination.beats, after=6) == []
        assert [beat.guest_ms for beat in destination.beats] == [1234, 1234]
        assert destination.other == []


def test_a_broken_heartbeat_is_not_taken_for_one() -> None:
    console = read_console(BEAT.format(1) + BEAT.format(2).replace("errors=0", "errors=") + "ERR page=1\r\n")
    assert [beat.number for beat in console.beats] == [1]
    assert console.other == [BEAT.format(2).replace("errors=0", "errors=").rstrip()]
    assert console.errors == ["ERR page=1"]


def test_waiting_for_a_guest_that_has_ended_says_what_it_said() -> None:
    console = read_console("Kernel panic\n" + BEAT.format(3))
    with pytest.raises(ConsoleError, match="console has ended\nKernel panic\nHB 3"):
        console.wait_beats(1)


def test_missing_beats() -> None:
    def beats(*numbers: int) -> list[Heartbeat]:
        return [Heartbeat(number, 0, 0, 0, 0, 0, 0, 0) for number in numbers]

    assert missing_beats(beats(5, 6, 7), after=4) == []
    assert missing_beats(beats(6, 7), after=4) == [5, 6]
    assert missing_beats(beats(5, 7), after=4) == [6]
    assert missing_beats(beats(5, 5), after=4) == [6]


def test_mirror_is_read_from_both_formats_of_sources() -> None:
    comment = "# deb http://no.example/debian bookworm main\n"
    signed = "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main\n"
    assert mirror_of("bookworm", comment + signed) == ("http://a.example/debian", "/k.gpg")
    plain = "deb http://b.example/debian bookworm main\n"
    assert mirror_of("bookworm", comment + plain) == ("http://b.example/debian", None)
    stanza = "Types: deb\n# told\nURIs: http://c.example/debian\nSuites: bookworm bookworm-updates\n"
    other = "Types: deb\nURIs: http://d.example/security\nSuites: bookworm-security\n\n"
    assert mirror_of("bookworm", other + stanza) == ("http://c.example/debian", None)
    assert mirror_of("bookworm", stanza + "Signed-By: /k.gpg\n") == ("http://c.example/debian", "/k.gpg")
    with pytest.raises(FetchError, match="no mirror of bookworm"):
        mirror_of("bookworm", comment + other)


def test_a_shape_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="alias"):
        GuestShape("q35")
    with pytest.raises(ValueError, match="beside the workload"):
        GuestShape("pc", memory_mib=256, workload_mib=256)
    with pytest.raises(ValueError, match="one CPU"):
        GuestShape("microvm", smp=2)
    assert GuestShape("pc").qemu_machine == "pc-i440fx-7.2"
    assert GuestShape("pc-q35-7.2").qemu_machine == "pc-q35-7.2"


@pytest.mark.parametrize("data", [[], [0], [3, 4, 9], [15]], ids=str)
def test_a_sparse_copy_has_the_same_bytes_and_holes(data: list[int], tmp_path: Path) -> None:
    part = 1 << 18
    source, copy = tmp_path / "source", tmp_path / "copy"
    with source.open("wb") as writer:
        writer.truncate(16 * part)
        for at in data:
            writer.seek(at * part)
            writer.write(bytes([at + 1]) * part)
    copy_sparse(source, copy)
    assert copy.read_bytes() == source.read_bytes()
    assert allocated_bytes(copy) == len(data) * part

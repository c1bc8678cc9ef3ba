# SPDX-License-Identifier: Apache-2.0
"""Records: whole or not at all, before anything else, of one process alone."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pageferry.reasons import PageferryError, Reason
from pageferry.records import Records
from tests.support.processes import unchanged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "state"


def test_what_is_written_is_found(folder: Path) -> None:
    with unchanged(), Records(folder) as records:
        assert records.load_all() == {}
        records.write("one", {"phase": "CREATED", "number": 1 << 63, "text": "ö\n"})
        records.write("two", {})
        records.write("one", {"phase": "PRECOPY"})
    with Records(folder) as records:
        assert records.load_all() == {"one": {"phase": "PRECOPY"}, "two": {}}
        records.remove("one")
        records.remove("one")
        assert records.load_all() == {"two": {}}


def test_it_is_the_owner_s_alone(folder: Path) -> None:
    with Records(folder) as records:
        records.write("one", {})
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "one.json").stat().st_mode) == 0o600


def test_one_process_has_it(folder: Path) -> None:
    with Records(folder), unchanged(), pytest.raises(PageferryError, match="another process") as caught:
        Records(folder)
    assert caught.value.reason is Reason.ALREADY_ATTACHED
    Records(folder).close()


def test_synced_before_it_is_in_place_and_the_folder_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Records(folder) as records:
        records.write("one", {"phase": "CREATED"})
        seen: list[str] = []

        def fsync(fd: int) -> None:
            phase = json.loads((folder / "one.json").read_text())["phase"]
            seen.append(f"{'folder' if stat.S_ISDIR(os.fstat(fd).st_mode) else 'file'} {phase}")

        monkeypatch.setattr(os, "fsync", fsync)
        records.write("one", {"phase": "ABORTED"})
    assert seen == ["file CREATED", "folder ABORTED"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, Reason.NO_MEMORY),
        (errno.EROFS, Reason.NOT_ALLOWED),
        (errno.EIO, Reason.BAD_REQUEST),
    ],
)
def test_what_cannot_be_written_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: Reason
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    with Records(folder) as records:
        records.write("one", {"phase": "CREATED"})
        with monkeypatch.context() as patched, unchanged():
            patched.setattr(os, "fsync", fsync)
            with pytest.raises(PageferryError) as caught:
                records.write("one", {"phase": "ABORTED"})
        assert caught.value.reason is reason
        assert caught.value.remedy
        assert records.load_all() == {"one": {"phase": "CREATED"}}
        assert sorted(path.name for path in folder.iterdir()) == ["lock", "one.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\x80",
        '{"session": "one"}',
        '{"format": 2, "session": "one"}',
        '{"format": 1}',
        '{"format": 1, "session": "two"}',
    ],
)
def test_nothing_is_guessed(folder: Path, content: str) -> None:
    with Records(folder) as records:
        (folder / "one.json").write_text(content, encoding="latin-1")
        with pytest.raises(PageferryError, match=r"one\.json cannot be understood") as caught:
            records.load_all()
    assert caught.value.reason is Reason.MISMATCH


@pytest.mark.parametrize("name", ["", "a/b", "..", "A", "a" * 64])
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    with Records(folder) as records, pytest.raises(ValueError, match="no name of a session"):
        records.write(name, {})


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with unchanged(), pytest.raises(PageferryError, match="cannot keep records"):
        Records(tmp_path / "file" / "state")


def test_big_numbers_and_hashes_come_back(folder: Path) -> None:
    fields: dict[str, Any] = {"token_sha256": "ab" * 32, "target": (1 << 64) - 1, "handed_over": True}
    with Records(folder) as records:
        records.write("one", fields)
        assert records.load_all()["one"] == fields

# SPDX-License-Identifier: Apache-2.0
"""The word that a process is ready: in a file, whole or not at all, and down a descriptor."""

import json
import os
from pathlib import Path

import pytest

from pageferry.reasons import PageferryError, Reason
from pageferry.service.ready import Ready


def test_the_file_is_whole_once_it_is_there(tmp_path: Path) -> None:
    ready = Ready(file=tmp_path / "ready")
    ready.check()
    assert not (tmp_path / "ready").exists()
    ready.say({"data": "127.0.0.1:1"})
    assert json.loads((tmp_path / "ready").read_text()) == {"pid": os.getpid(), "data": "127.0.0.1:1"}
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]


def test_the_word_of_an_earlier_process_is_removed(tmp_path: Path) -> None:
    (tmp_path / "ready").write_text("{}")
    Ready(file=tmp_path / "ready").check()
    assert not (tmp_path / "ready").exists()


def test_down_a_descriptor_which_is_closed_then() -> None:
    reader, writer = os.pipe()
    ready = Ready(fd=writer)
    ready.check()
    ready.say({"control": "unix:/a"})
    with os.fdopen(reader) as read:
        assert json.loads(read.read())["control"] == "unix:/a"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)


def test_a_descriptor_that_is_not_open() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(PageferryError) as caught:
        Ready(fd=writer).check()
    assert caught.value.reason is Reason.BAD_REQUEST


def test_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(PageferryError, match="nobody reads"):
        Ready(fd=writer).say({})


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PageferryError) as caught:
        Ready(file=tmp_path / "none" / "ready").check()
    assert caught.value.reason is Reason.BAD_REQUEST
    assert caught.value.remedy


def test_nothing_is_asked_nothing_is_said() -> None:
    Ready().check()
    Ready().say({})

# SPDX-License-Identifier: Apache-2.0
"""The hand-off socket: made and given, replaced when its owner has died, never taken from one that lives."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.host.listener import Listener
from pageferry.reasons import PageferryError, Reason
from tests.support.handoff_client import Vmm, layout, region
from tests.support.processes import unchanged

ONE = layout(region(0x7F3C_0000_0000, 16))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with unchanged():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "handoff.sock"


def refusal(path: Path) -> PageferryError:
    with pytest.raises(PageferryError) as caught:
        Listener(path)
    return caught.value


def hand_over(path: Path) -> None:
    reading, writing = os.pipe()
    with Vmm(path) as vmm:
        vmm.send(ONE, [reading])
    os.close(reading)
    os.close(writing)


def left_by_a_dead_process(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(path))


def no_umask(_mask: int) -> int:
    raise AssertionError("the umask is every thread's: what another one makes meanwhile would have it")


def test_only_its_owner_may_connect_and_it_is_gone_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = os.umask(0)
    monkeypatch.setattr(os, "umask", no_umask)
    try:
        with Listener(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        monkeypatch.undo()
        os.umask(mask)
    assert not path.exists()


def test_several_vmms_one_after_another(path: Path) -> None:
    with Listener(path) as listener:
        for _ in range(3):
            sender = threading.Thread(target=hand_over, args=[path])
            sender.start()
            with listener.accept(timeout_s=10) as handoff:
                assert handoff.pid == os.getpid()
            sender.join()


def test_after_a_refused_one_too(path: Path) -> None:
    with Listener(path) as listener:
        with Vmm(path) as vmm:
            vmm.send(b"{}")
            with pytest.raises(PageferryError):
                listener.accept(timeout_s=10)
        hand_over(path)
        listener.accept(timeout_s=10).close()


def test_nobody_comes(path: Path) -> None:
    with Listener(path) as listener, pytest.raises(PageferryError, match="no VMM has connected") as caught:
        listener.accept(timeout_s=0.01)
    assert caught.value.reason is Reason.TOO_SLOW


def test_a_dead_socket_is_replaced(path: Path) -> None:
    left_by_a_dead_process(path)
    with Listener(path) as listener:
        hand_over(path)
        listener.accept(timeout_s=10).close()


def test_a_live_one_is_not_and_does_not_notice(path: Path) -> None:
    """A probe that connected would be taken for the VMM, and end the first client."""
    with Listener(path) as listener:
        error = refusal(path)
        assert error.reason is Reason.ALREADY_ATTACHED
        assert "another fault client listens" in str(error)
        hand_over(path)
        listener.accept(timeout_s=10).close()
    assert not path.exists()


def test_a_live_one_whose_queue_is_full_is_live(path: Path) -> None:
    with Listener(path), Vmm(path), Vmm(path):
        assert refusal(path).reason is Reason.ALREADY_ATTACHED


def test_a_socket_that_replaced_ours_is_left_alone(path: Path) -> None:
    with Listener(path):
        path.rename(path.with_suffix(".old"))
        left_by_a_dead_process(path)
    assert path.exists()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_socket_is_left_alone(path: Path, make: object) -> None:
    assert callable(make)
    make(path)
    before = path.lstat()
    assert "is no socket" in str(refusal(path))
    assert path.lstat().st_ino == before.st_ino


def test_no_folder(path: Path) -> None:
    error = refusal(path.parent / "absent" / "handoff.sock")
    assert "is not there; make it first" in str(error)
    assert error.exit_code == 65


def test_a_path_that_does_not_fit(path: Path) -> None:
    assert "path too long" in str(refusal(path.with_name("a" * 120)))


def test_given_to_the_vmms_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda *arguments: given.append(arguments))
    for uid in (0, os.geteuid(), None):  # who may connect anyway
        Listener(path, vmm_uid=uid).close()
    assert given == []
    Listener(path, vmm_uid=1234).close()
    assert given == [(path, 1234, -1)]


def test_not_to_be_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", forbidden)
    with pytest.raises(PageferryError, match="cannot give") as caught:
        Listener(path, vmm_uid=1234)
    assert caught.value.reason is Reason.NOT_ALLOWED
    assert not path.exists()

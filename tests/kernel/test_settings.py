# SPDX-License-Identifier: Apache-2.0
"""tests/support/settings.py: whatever ends a test, the machine is as it was."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.settings import HUGE_2_MIB, Settings, SettingsError, chosen, pool

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
# Changes what its arguments say, says so, and waits for its end.
BODY = """
import sys, time
from pathlib import Path
from tests.support.settings import Settings

machine = Settings()
machine.write(Path(sys.argv[1]), "advise")
print(machine.tmpfs("huge=advise", "size=4m") if sys.argv[2] == "mount" else "-", flush=True)
time.sleep(600)
"""


def within_patience(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    return happened()


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    """Stands in for one of the kernel's: what is written is what it is."""
    path = tmp_path / "shmem_enabled"
    path.write_text("never")
    return path


def test_chosen() -> None:
    assert chosen("always within_size [advise] never\n") == "advise"
    assert chosen("17\n") == "17"


def test_put_back_in_order(setting: Path) -> None:
    with Settings() as machine:
        machine.write(setting, "advise")
        assert setting.read_text() == "advise"
    assert setting.read_text() == "never"


def test_what_cannot_be_changed_is_told(tmp_path: Path) -> None:
    with Settings() as machine, pytest.raises(SettingsError, match="No such file"):
        machine.write(tmp_path / "absent", "1")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed(setting: Path, number: signal.Signals) -> None:
    """And its whole process group with it, as a terminal or a time limit does."""
    root = os.geteuid() == 0
    words = [sys.executable, "-c", BODY, str(setting), "mount" if root else "-"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0) as test:
        assert test.stdout is not None
        folder = test.stdout.readline().strip()
        assert setting.read_text() == "advise"
        assert not root or os.path.ismount(folder)
        os.killpg(test.pid, number)
    assert within_patience(lambda: setting.read_text() == "never")
    assert not root or within_patience(lambda: not Path(folder).exists())


def test_one_owner_at_a_time(setting: Path) -> None:
    """Who wants to change what somebody has changed waits until that is undone."""
    with subprocess.Popen(
        [sys.executable, "-c", BODY, str(setting), "-"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "-\n"
        release = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {first.pid}"])
        with Settings() as machine:
            machine.write(setting, "always")
            assert first.wait(PATIENCE_S) == -signal.SIGKILL
            assert setting.read_text() == "always"
        assert release.wait(PATIENCE_S) == 0
    assert setting.read_text() == "never"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes the pool of huge pages")
def test_pool_is_added_to() -> None:
    size = pool(HUGE_2_MIB)
    if not size.exists():
        pytest.skip("no huge pages of 2 MiB here")
    with Settings() as machine:
        machine.add_huge_pages(2)
        assert int(size.read_text()) >= 2

# SPDX-License-Identifier: Apache-2.0
"""The C half builds and passes its own tests where there is no Python: everything generated is checked in."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.initrd import ROOT

# What a build of C needs by name; gcc finds its own parts by itself.
TOOLS = (
    *(
        "sh",
        "make",
        "gcc",
        "ar",
        "as",
        "ld",
        "pkg-config",
        "env",
        "echo",
        "cat",
        "cut",
        "date",
        "find",
        "grep",
    ),
    *(
        "head",
        "mkdir",
        "mktemp",
        "rm",
        "sort",
        "tail",
        "basename",
        "dirname",
        "true",
        "mount",
        "umount",
        "unshare",
        "xargs",
    ),
)


@pytest.fixture
def without_python(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has these tools and no interpreter."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, f"{tool} is not here"
        (folder / tool).symlink_to(found)
    (folder / "cc").symlink_to(folder / "gcc")
    return {"PATH": str(folder), "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}


@pytest.mark.timeout(600)
def test_native_check_needs_no_python(without_python: dict[str, str], tmp_path: Path) -> None:
    assert shutil.which("python3", path=without_python["PATH"]) is None
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT / "native"), f"BUILD={tmp_path / 'build'}", "check"],
        env=without_python,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    closing = re.search(r"^(\d+) passed, 0 failed, \d+ skipped$", done.stdout.splitlines()[-1])
    assert closing is not None and int(closing[1]) > 100, done.stdout[-1000:]

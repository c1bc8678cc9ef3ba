# SPDX-License-Identifier: Apache-2.0
"""Programs in C of the tests' own, compiled into build/support when their source is newer."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
BUILD = ROOT / "build/support"
FLAGS = ("-std=gnu17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-D_GNU_SOURCE", "-pthread")


def compiled(target: str, sources: Sequence[str], headers: Sequence[str] = (), *more: str) -> Path:
    """The program (or, with -shared among `more`, the library) of these files of tests/support."""
    result = BUILD / target
    files = [SUPPORT / name for name in sources]
    newest = max(file.stat().st_mtime for file in [*files, *(SUPPORT / name for name in headers)])
    if not result.exists() or result.stat().st_mtime < newest:
        result.parent.mkdir(parents=True, exist_ok=True)
        fresh = result.with_suffix(f".{os.getpid()}")  # another run of the tests may do the same now
        subprocess.run([os.environ.get("CC", "gcc"), *FLAGS, *more, "-o", fresh, *files], check=True)
        fresh.rename(result)
    return result


def guest_program() -> Path:
    """The stand-in VMM (guest.c)."""
    return compiled(
        "guest",
        ("guest.c", "guest_ram.c", "guest_work.c"),
        ("guest_ram.h", "guest_work.h", "guest_stamp.h"),
    )

# SPDX-License-Identifier: Apache-2.0
"""The files that the house tests hold to its rules: those that git tracks."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def tracked(*patterns: str) -> list[str]:
    """Paths from the root, of files that exist; git's patterns: '*.py' matches in every folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")

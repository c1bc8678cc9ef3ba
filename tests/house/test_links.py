# SPDX-License-Identifier: Apache-2.0
"""Every link of a Markdown file leads to a file of the project, and to a heading that it has."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from tests.house.tracked import ROOT, text_of, tracked

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def prose(name: str) -> str:
    """Without code, where brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "`code`", FENCED.sub("", text_of(name)))


def anchors(name: str) -> Iterator[str]:
    """As the usual viewers make them: lower case, no punctuation, dashes for spaces."""
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(name)), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("name", tracked("*.md"))
def test_links_resolve(name: str) -> None:
    wrong = []
    for link in LINK.findall(prose(name)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / PurePosixPath(name).parent / path).resolve() if path else ROOT / name
        relative = target.relative_to(ROOT).as_posix()
        if not target.exists() or (anchor and anchor not in anchors(relative)):
            wrong.append(link)
    assert not wrong

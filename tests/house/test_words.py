# SPDX-License-Identifier: Apache-2.0
"""The glossary names things as the code does: each name is looked up in the language of its column."""

import re
from functools import cache

import pytest

from tests.house.tracked import text_of, tracked

GLOSSARY = "docs/glossary.md"
COLUMNS = ("C", "Python", "contract and metrics")
# A word that is only talked about is no name.
COMMENTS = {
    "C": re.compile(r"/\*.*?\*/", re.DOTALL),
    "Python": re.compile(r"#[^\n]*|\"\"\".*?\"\"\"", re.DOTALL),
    "contract and metrics": re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL),
}


def sources(column: str) -> list[str]:
    if column == "C":
        return tracked("native/*.c", "native/*.h")
    if column == "Python":
        hand_written = tracked("pageferry/*.py", "faultclient/*.py", "pageserver/*.py")
        return [name for name in hand_written if not name.startswith("pageferry/v1/")]
    return tracked("proto/pageferry/*.proto", "native/base/stats.h")


@cache
def identifiers(column: str) -> frozenset[str]:
    """Those that C's preprocessor makes of a table and a prefix too: PAGE_##name of X(OWNED, ...)."""
    found: set[str] = set()
    for name in sources(column):
        code = COMMENTS[column].sub("", text_of(name))
        found |= set(re.findall(r"[A-Za-z_]\w*", code))
        for prefix in re.findall(r"\b(\w+)##", code):
            found |= {f"{prefix}{entry}" for entry in re.findall(r"\bX\((\w+)", code)}
    return frozenset(found)


def rows() -> list[list[str]]:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text_of(GLOSSARY).splitlines()
        if line.startswith("|")
    ]
    header, _, *listed = cells
    assert header == ["term", "means", *COLUMNS]
    return listed


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_term_has_names_and_the_code_has_them_too(row: list[str]) -> None:
    names = [
        (column, name)
        for column, cell in zip(COLUMNS, row[2:], strict=True)
        for name in re.findall(r"`([^`]+)`", cell)
    ]
    assert names
    assert not [(column, name) for column, name in names if name not in identifiers(column)]


def test_a_term_is_explained_once_and_on_one_page() -> None:
    terms = [row[0] for row in rows()]
    assert len(set(terms)) == len(terms)
    assert len(text_of(GLOSSARY).splitlines()) < 70

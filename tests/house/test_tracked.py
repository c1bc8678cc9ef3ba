# SPDX-License-Identifier: Apache-2.0
"""Every tracked file says its licence first; none knows its author's machine, or a registry of packages."""

import re

import pytest

from tests.house.tracked import ROOT, text_of, tracked

SPDX = "SPDX-License-Identifier: Apache-2.0"
LICENSED = (
    *("*.c", "*.h", "*.py", "*.pyi", "*.proto", "*.yaml", "*.toml"),
    *("Makefile", "*/Makefile", ".ci/*", "tests/native/run", "tests/allowed_skips.txt"),
)
# In pieces, so that this file does not hold what it forbids.
NAMES = {"org": ("pypi", "pythonhosted", "debian", "golang", "npmjs"), "io": ("crates", "docker")}
HOSTS = [f"{name}.{ending}" for ending, names in NAMES.items() for name in names]
FOLDERS = [f"/{name}/" for name in ("work", "root", "home")]
FORBIDDEN = re.compile("|".join(map(re.escape, HOSTS + FOLDERS)) + r"|/tmp/[a-z]+_jobs")


@pytest.mark.parametrize("name", tracked(*LICENSED))
def test_the_licence_stands_first(name: str) -> None:
    first, second, *_ = [*text_of(name).splitlines(), "", ""]
    assert SPDX in (second if first.startswith("#!") else first)


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for name in tracked():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:
            found += [f"{name}: {match[0]}" for match in FORBIDDEN.finditer(content.decode(errors="replace"))]
    assert not found

# SPDX-License-Identifier: Apache-2.0
"""A second QEMU beside the system's, in a private root under build/: nothing is installed, no package source
is changed.

    QEMU=$(python -m tests.support.qemu_versions fetch 10.0) make demo

fetches the release's backport of QEMU by apt, with a configuration of its own (sources, lists, cache), from
the mirror that the system's own sources name. It prints the path of a script that runs that QEMU with its own
firmware and libraries.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.initrd import ROOT

FOLDER = ROOT / "build" / "qemu"
PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
LIBRARIES = "usr/lib/x86_64-linux-gnu"


class FetchError(Exception):
    """That version is not to be had here; the text says why."""


def fetch(version: str) -> Path:
    """The script that runs QEMU `version` ("10.0"); fetched unless it is there."""
    script = FOLDER / version / "qemu-system-x86_64"
    if script.exists():
        return script
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        root = Path(scratch) / version / "root"
        root.mkdir(parents=True)
        for package in _download(version, Path(scratch) / "apt"):
            _run(["dpkg-deb", "--extract", str(package), str(root)])
        (root.parent / script.name).write_text(_script(script.parent / "root"))
        (root.parent / script.name).chmod(0o755)
        root.parent.rename(script.parent)
    said = _run([str(script), "--version"])
    if f"version {version}." not in said:
        raise FetchError(f"{script} says {said.strip()!r}, not version {version}")
    return script


def _download(version: str, folder: Path) -> list[Path]:
    """The packages of the backport, and what they need beyond what this system has."""
    release = _codename()
    sources = folder / "sources.list"
    archives = folder / "cache" / "archives"
    for made in (folder / "lists" / "partial", archives / "partial"):
        made.mkdir(parents=True)
    mirror, keyring = mirror_of(release, _system_sources())
    signed = f"[signed-by={keyring}] " if keyring else ""
    suites = (release, f"{release}-backports")
    sources.write_text("".join(f"deb {signed}{mirror} {suite} main\n" for suite in suites))
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::Cache::archives": archives,
        "Debug::NoLocking": "true",  # nothing outside `folder` is written
        "APT::Sandbox::User": "root",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    apt = ["apt-get", "-q", "-y", *(f"--option={name}={value}" for name, value in settings.items())]
    _run([*apt, "update"])
    wanted = ["install", "--download-only", "--reinstall", "--no-install-recommends"]
    _run([*apt, *wanted, "--target-release", suites[1], *PACKAGES])
    packages = sorted(archives.glob("*.deb"))
    if not any(re.match(rf"qemu-system-x86_.*{re.escape(version)}\.", package.name) for package in packages):
        names = ", ".join(package.name for package in packages)
        raise FetchError(f"{suites[1]} has no QEMU {version}; it has: {names}")
    return packages


def _codename() -> str:
    text = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\S+)", text, re.MULTILINE)
    if not found:
        raise FetchError("/etc/os-release names no Debian release")
    return found.group(1).strip('"')


def _system_sources() -> str:
    etc = Path("/etc/apt")
    parts = sorted((etc / "sources.list.d").glob("*"))
    files = [path for path in (etc / "sources.list", *parts) if path.suffix in (".list", ".sources")]
    return "\n\n".join(path.read_text() for path in files if path.exists())


def mirror_of(release: str, sources: str) -> tuple[str, str | None]:
    """Where the system has `release` itself from, and the keyring it names; `sources` is in either format
    of apt.
    """
    for line in sources.splitlines():
        words = re.sub(r"\[.*?\]", "", line).split()
        if words[:1] == ["deb"] and words[2:3] == [release]:
            keyring = re.search(r"\[[^\]]*signed-by=([^\] ]+)", line)
            return words[1], keyring.group(1) if keyring else None
    for stanza in re.split(r"\n\s*\n", sources):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*?)[ \t]*$", stanza, re.MULTILINE))
        if "deb" in fields.get("Types", "").split() and release in fields.get("Suites", "").split():
            return fields["URIs"].split()[0], fields.get("Signed-By")
    raise FetchError(f"the system's apt sources name no mirror of {release}")


def _script(root: Path) -> str:
    """PID and environment (LD_PRELOAD too) are the caller's: the shell is replaced by QEMU."""
    libraries = shlex.quote(f"{root / LIBRARIES}")
    modules = shlex.quote(f"{root / LIBRARIES / 'qemu'}")
    shares = " ".join(f"-L {shlex.quote(str(root / 'usr/share' / name))}" for name in ("qemu", "seabios"))
    program = shlex.quote(str(root / "usr/bin/qemu-system-x86_64"))
    exports = f"LD_LIBRARY_PATH={libraries} QEMU_MODULE_DIR={modules}"
    return f'#!/bin/sh\nexport {exports}\nexec {program} {shares} "$@"\n'


def _run(argv: list[str]) -> str:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise FetchError(f"{argv[0]} is not here: this needs a Debian system") from error
    if done.returncode != 0:
        raise FetchError(f"`{shlex.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "fetch":
        sys.exit("usage: python -m tests.support.qemu_versions fetch VERSION")
    try:
        print(fetch(sys.argv[2]))
    except FetchError as failure:
        sys.exit(str(failure))

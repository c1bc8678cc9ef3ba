# SPDX-License-Identifier: Apache-2.0
"""Builds a mutant and runs the test that must fail. A mutant is one object, and a link.

The changed object stands before the library on the linker's line, so the library's own is left out.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
TESTS = ROOT / "tests" / "native"
BUILD = ROOT / "build" / "mutants"
BASE = BUILD / "base"
# -O1 compiles in half the time, and the simulation is fast enough
OPTIMISE = "-O1"
CC = shlex.split(os.environ.get("CC", "gcc"))
COMPILE = [*CC, "-std=gnu17", OPTIMISE, "-w", "-fPIC", "-pthread", "-D_GNU_SOURCE"]
PACKAGES = ["libnghttp2", "libxxhash", "libcrypto"]
SIMULATION = "test_simulation"
# Every rule of the pager breaks within a few of these, if the simulation sees it at all.
SEEDS, STEPS = 200, 10_000
ARGUMENTS = {SIMULATION: [str(SEEDS), str(STEPS)]}
TIME_LIMIT_S = 60
# What the simulation says, and what a test of check.h says: the rule, or the wrong byte.
SAID = re.compile(r"^(?:seed \d+ step \d+: page \d+: (?P<rule>.+)|FAIL (?P<test>\w+))$")


class BuildFailed(Exception):
    """A mutant, or what it is made from, does not compile: its text is wrong, or the code has changed."""


@dataclass(frozen=True)
class Mutant:
    name: str
    rule: str
    held_by: str
    # text of the changed files, by path below native/; one of them is compiled, others are its headers
    files: dict[str, str] = field(hash=False)

    @property
    def source(self) -> str:
        (source,) = (path for path in self.files if path.endswith(".c"))
        return source


@dataclass(frozen=True)
class Verdict:
    """How a test program ended. `how` is "says" (it named a rule or a wrong byte), "crash" or "time-out";
    else nothing was proved: "passes", or "exit" with a status that nothing explains."""

    how: str
    text: str

    @property
    def killed(self) -> bool:
        return self.how in ("says", "crash", "time-out")


def call(command: list[str], what: str) -> str:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise BuildFailed(f"{what}: {shlex.join(command)}\n{done.stdout}")
    return done.stdout


class Workshop:
    """Everything that a mutant is linked with, built apart: no edit under way gets between two of them."""

    def __init__(self, programs: set[str], workers: int) -> None:
        support = sorted(path.stem for path in TESTS.glob("*.c") if not path.name.startswith("test_"))
        names = [f"tests/{name}.o" for name in [*support, *sorted(programs)]]
        build = Path("..") / BASE.relative_to(ROOT)
        make = ["make", "--no-print-directory", f"-j{workers}", "-C", "native"]
        wanted = ["lib", *(f"{build}/{name}" for name in names)]
        call([*make, f"BUILD={build}", f"OPT={OPTIMISE}", *wanted], "what mutants are linked with")
        archive = BASE / "libsupport.a"
        archive.unlink(missing_ok=True)
        objects = [str(BASE / "tests" / f"{name}.o") for name in support]
        call(["ar", "rcs", str(archive), *objects], "what the tests share")
        self.include = shlex.split(call(["pkg-config", "--cflags", *PACKAGES], "pkg-config"))
        libraries = shlex.split(call(["pkg-config", "--libs", *PACKAGES], "pkg-config"))
        self.libraries = [*libraries, "-pthread", "-lm"]

    def build(self, mutant: Mutant | None, program: str) -> Path:
        """The test program with the mutant in it; None: as it is."""
        folder = BUILD / "made" / (re.sub(r"\W+", "-", mutant.name) if mutant else f"control-{program}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        objects = [str(BASE / "tests" / f"{program}.o")]
        if mutant is not None:
            for path, text in mutant.files.items():
                (folder / Path(path).name).write_text(text, encoding="utf-8")
            source, changed = folder / Path(mutant.source).name, folder / "changed.o"
            beside = str((NATIVE / mutant.source).parent)
            include = [*self.include, "-iquote", beside]
            call([*COMPILE, *include, "-c", str(source), "-o", str(changed)], mutant.name)
            objects.append(str(changed))
        made = folder / program
        libraries = [str(BASE / "libsupport.a"), str(BASE / "libpageferry.a"), *self.libraries]
        options = [*self.link_options(program), "-o", str(made)]
        call([*CC, *objects, *libraries, *options], mutant.name if mutant else program)
        return made

    def link_options(self, program: str) -> list[str]:
        """What native/Makefile links this program with beside the libraries."""
        text = (NATIVE / "Makefile").read_text(encoding="utf-8")
        found = re.search(rf"^\$\(BUILD\)/tests/{program}: TEST_LINK := (.+)$", text, re.MULTILINE)
        return shlex.split(found[1]) if found else []

    def verdict(self, mutant: Mutant | None, program: str) -> Verdict:
        made = self.build(mutant, program)
        verdict = judge([str(made), *ARGUMENTS.get(program, [])])
        if verdict.killed or mutant is None:
            shutil.rmtree(made.parent)
        return verdict


def judge(command: list[str]) -> Verdict:
    """The first thing that it says is wrong ends it: what comes after that adds nothing."""
    line = ""
    with subprocess.Popen(
        ["stdbuf", "-oL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as running:
        assert running.stdout is not None
        limit = threading.Timer(TIME_LIMIT_S, running.kill)
        limit.start()
        for line in running.stdout:
            if (said := SAID.search(line)) is not None:
                limit.cancel()
                running.kill()
                return Verdict("says", said["rule"] or said["test"])
        timely = limit.is_alive()
        limit.cancel()
    if not timely:
        return Verdict("time-out", f"{TIME_LIMIT_S} s")
    if running.returncode < 0:
        return Verdict("crash", signal.Signals(-running.returncode).name)
    if running.returncode == 0:
        return Verdict("passes", "")
    return Verdict("exit", f"status {running.returncode}: {line.strip()}")

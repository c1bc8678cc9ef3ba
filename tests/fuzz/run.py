# SPDX-License-Identifier: Apache-2.0
"""Builds the fuzzers and runs one after another; README.md tells what each is.

    python -m tests.fuzz.run [--seconds 60] [--no-plants] [NAME...]

Each runs for so long from its seeds, and from what earlier runs have found worth keeping (build/fuzz/corpus).
Then its planted bug (plants.toml) must be found within PLANT_RUNS. Closes with executions, the line coverage
of the parsers that they aim at, and one line of JSON. Exit status 1: a finding, a parser below 90 % of its
lines, or a planted bug that was not found.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
WORK: Final = ROOT / "build/fuzz"
BUILT: Final = "native/build/fuzz"
LINES_MIN: Final = 0.9
TELLING: Final = re.compile(r"not so:|ERROR|error:|^\s+#\d+ .*(native|tests)/|written")
PLANT_RUNS: Final = 1_000_000
PLANT_SECONDS: Final = 300
HANDOFF: Final = "handoff"
INPUT_BYTES_MAX: Final = {"messages": 8192, "frames": 2048, "server": 8192, "client": 16384, "engine": 1024}
# the parsers, and whose runs count for each
AIMS: Final = {
    "native/rpc/messages.c": ("messages",),
    "native/rpc/pb.h": ("messages",),
    "native/rpc/runs.c": ("messages",),
    "native/rpc/payload.c": ("messages", "client"),
    "native/kernel/frames.c": ("frames",),
    "native/client/vmm.c": ("frames",),
    "native/rpc/fields.c": ("server", "client"),
    "native/rpc/incoming.c": ("server", "client"),
    "native/rpc/receiving.c": ("server", "client"),
    "native/serve/methods.c": ("server",),
    "native/serve/standard.c": ("server",),
    "native/client/answers.c": ("client",),
    "native/pager/engine.c": ("engine", "simulation"),
    "native/pager/news.c": ("engine", "simulation"),
}


class Result(NamedTuple):
    executions: int
    found: bool


class Cover(NamedTuple):
    name: str
    seen: int
    lines: int

    @property
    def enough(self) -> bool:
        return self.seen >= LINES_MIN * self.lines


def names() -> list[str]:
    return [*sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.c")), HANDOFF]


def build(root: Path, only: str | None = None) -> None:
    chosen = [f"FUZZERS=build/fuzz/fuzzers/fuzz_{only}"] if only else []
    subprocess.run(
        ["make", "--silent", "--no-print-directory", "-C", root / "native", "fuzz", *chosen],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def run(name: str, root: Path, *, seconds: int, runs: int | None, corpus: Path) -> Result:
    """From the seeds; what it says goes to a file beside the corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    log = corpus.parent / f"{corpus.name}.log"
    seeds = HERE / "seeds" / name
    command: list[str | Path]
    if name == HANDOFF:
        command = [sys.executable, "-m", "tests.fuzz.fuzz_handoff", f"--seconds={seconds}", seeds]
        command += [f"--runs={runs}"] if runs else []
    else:
        command = [root / BUILT / "fuzzers" / f"fuzz_{name}", f"-max_total_time={seconds}", "-timeout=10"]
        command += [
            f"-max_len={INPUT_BYTES_MAX.get(name, 4096)}",
            "-print_final_stats=1",
            "-rss_limit_mb=2048",
        ]
        command += [f"-artifact_prefix={corpus.parent}/finding-{name}-", *([f"-runs={runs}"] if runs else [])]
        command += [corpus, seeds]
    environment = os.environ | {"LLVM_PROFILE_FILE": f"{corpus}.profraw", "PYTHONPATH": str(root)}
    nothing = subprocess.DEVNULL
    with log.open("w") as out:
        ended = subprocess.run(command, cwd=root, env=environment, stdout=out, stderr=out, stdin=nothing)
    text = log.read_text(errors="replace")
    executed = re.search(r"number_of_executed_units: (\d+)|finding after (\d+) runs", text)
    return Result(int(executed[1] or executed[2]) if executed else 0, ended.returncode != 0)


def show_finding(name: str, corpus: Path) -> None:
    log = corpus.parent / f"{corpus.name}.log"
    lines = log.read_text(errors="replace").splitlines()
    telling = [line for line in lines if TELLING.search(line)]
    print(f"FINDING by {name}, see {log}:", *telling[:20], *(lines[-5:] if not telling else []), sep="\n    ")


# --------------------------------------------------------------------------------------------------- coverage


def covered(file: str, fuzzers: list[str]) -> Cover:
    """Lines of a file that these fuzzers' runs have met, by LLVM's own counting."""
    profile = WORK / "merged.profdata"
    profiles = [WORK / f"corpus/{name}.profraw" for name in fuzzers]
    subprocess.run(["llvm-profdata-14", "merge", "-sparse", "-o", profile, *profiles], check=True)
    programs = [ROOT / BUILT / "fuzzers" / f"fuzz_{name}" for name in fuzzers]
    objects = [word for program in programs[1:] for word in ("-object", program)]
    command = ["llvm-cov-14", "export", "-summary-only", f"-instr-profile={profile}", programs[0], *objects]
    out = subprocess.run(
        [*command, ROOT / file], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    for one in json.loads(out.stdout)["data"][0]["files"]:
        if Path(one["filename"]).resolve() == ROOT / file:
            return Cover(file, one["summary"]["lines"]["covered"], one["summary"]["lines"]["count"])
    return Cover(file, 0, 1)


def coverage(ran: list[str]) -> list[Cover]:
    """Of the files all of whose fuzzers have run."""
    covers = [covered(file, list(aims)) for file, aims in AIMS.items() if set(aims) <= set(ran)]
    if HANDOFF in ran:
        found = re.search(r"lines: (\d+) of (\d+)", (WORK / "corpus" / f"{HANDOFF}.log").read_text())
        covers += [Cover("pageferry/host/handoff.py", int(found[1]), int(found[2]))] if found else []
    return covers


# ----------------------------------------------------------------------------------------------- planted bugs


def plant(name: str) -> Path:
    """A copy of the tree with the bug of this fuzzer in it, built."""
    bug = tomllib.loads((HERE / "plants.toml").read_text())[name]
    root = WORK / "planted"
    shutil.rmtree(root, ignore_errors=True)
    folders = ["pageferry", "tests/fuzz"] if name == HANDOFF else ["native", "tests/native", "tests/fuzz"]
    skipped = shutil.ignore_patterns("seeds", "__pycache__", "asan", "tsan", "*.so")
    for folder in folders:
        shutil.copytree(ROOT / folder, root / folder, ignore=skipped)
    target = root / bug["file"]
    text = target.read_text()
    if text.count(bug["old"]) != 1:
        sys.exit(f"plants.toml, {name}: {bug['file']} does not hold its `old` once: plant it anew")
    target.write_text(text.replace(bug["old"], bug["new"]))
    if name != HANDOFF:
        build(root, name)
    return root


def planted(name: str) -> Result:
    root = plant(name)
    corpus = WORK / "planted-corpus" / name
    shutil.rmtree(corpus, ignore_errors=True)
    return run(name, root, seconds=PLANT_SECONDS, runs=PLANT_RUNS, corpus=corpus)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--no-plants", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    chosen = options.names or names()
    WORK.mkdir(parents=True, exist_ok=True)
    build(ROOT)
    results, bugs = {}, {}
    for name in chosen:
        corpus = WORK / "corpus" / name
        results[name] = run(name, ROOT, seconds=options.seconds, runs=None, corpus=corpus)
        print(f"{name:<11} {results[name].executions:>9} executions in {options.seconds} s", flush=True)
        if results[name].found:
            show_finding(name, corpus)
    covers = [] if any(one.found for one in results.values()) else coverage(chosen)
    for one in covers:
        print(f"{one.name:<28} {one.seen:>4} of {one.lines:>4} lines, {one.seen / one.lines:.1%}")
    for name in [] if options.no_plants else chosen:
        bugs[name] = planted(name)
        said = f"found after {bugs[name].executions} executions" if bugs[name].found else "NOT FOUND"
        print(f"{name:<11} planted bug {said}", flush=True)
    short = [one.name for one in covers if not one.enough]
    summary = {
        "executions": {name: one.executions for name, one in results.items()},
        "findings": sum(one.found for one in results.values()),
        "planted": len(bugs),
        "planted_found": sum(one.found for one in bugs.values()),
        "below_90_percent": short,
    }
    print(f"fuzz: {json.dumps(summary)}")
    return int(summary["findings"] != 0 or summary["planted_found"] != len(bugs) or bool(short))


if __name__ == "__main__":
    sys.exit(main())

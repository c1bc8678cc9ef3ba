# SPDX-License-Identifier: Apache-2.0
"""Builds the fuzzers and runs as many at a time as there are processors; README.md tells what each is.

    python -m tests.fuzz.run [--seconds 60] [--no-plants] [NAME...]

Each runs for so long from its seeds, and from what earlier runs have found worth keeping (build/fuzz/corpus),
and then once more on a copy of the sources with a bug planted (plants.toml), which must be found within
PLANT_RUNS. Closes with executions, the line coverage of the parsers that they aim at, one line of JSON, and
"N passed, N failed, 0 skipped": a fuzzer passes without a finding, a parser with 90 % of its lines met, a
planted bug when it is found. Exit status 1 if any failed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
WORK: Final = ROOT / "build/fuzz"
BUILT: Final = "native/build/fuzz"
WORKERS: Final = os.cpu_count() or 1
LINES_MIN: Final = 0.9
TELLING: Final = re.compile(r"not so:|ERROR|error:|^\s+#\d+ .*(native|tests)/|written")
PLANT_RUNS: Final = 1_000_000
PLANT_SECONDS: Final = 600
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
    "native/serve/gate.c": ("server",),
    "native/serve/token.c": ("server",),
    "native/serve/opening.c": ("server",),
    "native/serve/reply.c": ("server",),
    "native/serve/standard.c": ("server",),
    "native/client/answers.c": ("client",),
    "native/client/round.c": ("client",),
    "native/pager/engine.c": ("engine", "simulation"),
    "native/pager/news.c": ("engine", "simulation"),
}


def say(text: str) -> None:
    """In one piece: several speak at a time."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


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
    chosen = [f"FUZZERS=build/fuzz/fuzzers/fuzz_{only}"] if only else [f"-j{WORKERS}"]
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
    say("\n    ".join([f"FINDING by {name}, see {log}:", *(telling[:20] or lines[-5:])]))


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


def bugs() -> dict[str, tuple[str, str]]:
    """By fuzzer: the file its bug goes into, and the text of that file with the bug."""
    planted = {}
    for name, bug in tomllib.loads((HERE / "plants.toml").read_text()).items():
        text = (ROOT / bug["file"]).read_text()
        if text.count(bug["old"]) != 1:
            sys.exit(f"plants.toml, {name}: {bug['file']} does not hold its `old` once: plant it anew")
        planted[name] = bug["file"], text.replace(bug["old"], bug["new"])
    return planted


def unneeded(folder: str, entries: list[str]) -> list[str]:
    """What a copy of the tree does without: all that is built but for the fuzzers."""
    built = folder == str(ROOT / "native/build")
    return [one for one in entries if one in ("seeds", "__pycache__") or (built and one != "fuzz")]


def plant(name: str, file: str, text: str) -> Path:
    """A copy of the tree with the bug of this fuzzer in it, built."""
    root = WORK / "planted" / name
    shutil.rmtree(root, ignore_errors=True)
    sources = ["pageferry"] if name == HANDOFF else ["native", "tests/native"]
    for folder in [*sources, "tests/fuzz"]:
        shutil.copytree(ROOT / folder, root / folder, ignore=unneeded)
    (root / file).write_text(text)
    if name != HANDOFF:
        build(root, name)
    return root


# ------------------------------------------------------------------------------------------------------- both


def fuzz(name: str, seconds: int) -> Result:
    corpus = WORK / "corpus" / name
    result = run(name, ROOT, seconds=seconds, runs=None, corpus=corpus)
    say(f"{name:<11} {result.executions:>9} executions in {seconds} s")
    if result.found:
        show_finding(name, corpus)
    return result


def find_planted(name: str, file: str, text: str) -> Result:
    root = plant(name, file, text)
    corpus = WORK / "planted-corpus" / name
    shutil.rmtree(corpus, ignore_errors=True)
    result = run(name, root, seconds=PLANT_SECONDS, runs=PLANT_RUNS, corpus=corpus)
    how = f"found after {result.executions} executions" if result.found else "NOT FOUND"
    say(f"{name:<11} planted bug {how}")
    if result.found:
        shutil.rmtree(root)
    return result


def run_all(chosen: list[str], seconds: int, planted: dict[str, tuple[str, str]]) -> list[dict[str, Result]]:
    """What each found, in the code as it is and with its bug in it."""
    with ThreadPoolExecutor(WORKERS) as pool:
        going: list[dict[str, Future[Result]]] = [
            {name: pool.submit(fuzz, name, seconds) for name in chosen},
            {name: pool.submit(find_planted, name, *planted[name]) for name in chosen if name in planted},
        ]
        try:
            return [{name: one.result() for name, one in group.items()} for group in going]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--no-plants", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    chosen = options.names or names()
    if unknown := set(chosen) - set(names()):
        parser.error(f"no such fuzzer: {' '.join(sorted(unknown))}; there are: {' '.join(names())}")
    planted = {} if options.no_plants else bugs()
    WORK.mkdir(parents=True, exist_ok=True)
    build(ROOT)
    results, bugs_met = run_all(chosen, options.seconds, planted)
    covers = [] if any(one.found for one in results.values()) else coverage(chosen)
    for one in covers:
        print(f"{one.name:<28} {one.seen:>4} of {one.lines:>4} lines, {one.seen / one.lines:.1%}")
    return close(results, covers, bugs_met)


def close(results: dict[str, Result], covers: list[Cover], bugs_met: dict[str, Result]) -> int:
    short = [one.name for one in covers if not one.enough]
    summary = {
        "executions": {name: one.executions for name, one in results.items()},
        "findings": sum(one.found for one in results.values()),
        "planted": len(bugs_met),
        "planted_found": sum(one.found for one in bugs_met.values()),
        "below_90_percent": short,
    }
    good = [not one.found for one in results.values()]
    good += [one.enough for one in covers] + [one.found for one in bugs_met.values()]
    print(f"fuzz: {json.dumps(summary)}")
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed, 0 skipped")
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())

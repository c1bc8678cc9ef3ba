# SPDX-License-Identifier: Apache-2.0
"""make bench: what a fault costs through pageferry, as a ratio to what it costs in plain C.

Five rounds; in each, every side once, in an order that turns round with every round, because the machine
drifts. A ratio is taken within a round, and the median of the rounds is the result. The same program faults
for all sides and checks every page it reads; a run with a wrong page, or with a page that came without a
fault, is no result and ends the benchmark.

All of this twice: unpinned, which is how it is used, and with all processes of all sides on one CPU, which
takes the scheduler's choices out: absolutes mean less there, ratios repeat.

    python -m bench.run [--rounds N] [--placement unpinned|one-cpu] [--output FILE]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import report
from bench.measure import Calls, counted, timed
from bench.room import RunFailed
from bench.sides import PROGRAMS, SIDES

BENCH = Path(__file__).parent
PLACEMENTS = ("unpinned", "one-cpu")
BUSY_LOAD = 0.5


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.run", description="fault latency against the floors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=128, help="memory of the program that faults")
    parser.add_argument("--touches", type=int, default=16000, help="timed faults of a run")
    parser.add_argument("--warm-up", type=int, default=500, help="faults before, not counted")
    parser.add_argument(
        "--placement", choices=PLACEMENTS, action="append", help="default: one after the other"
    )
    parser.add_argument("--output", type=Path, default=PROGRAMS / "results.json")
    return parser.parse_args()


@contextmanager
def placed(placement: str) -> Iterator[None]:
    """Processes started inside inherit where this one may run."""
    allowed = os.sched_getaffinity(0)
    try:
        if placement == "one-cpu":
            os.sched_setaffinity(0, {max(allowed)})
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def measure(image: Path, chosen: argparse.Namespace, placement: str) -> list[report.Round]:
    rounds: list[report.Round] = []
    for number in range(1, chosen.rounds + 1):
        figures: report.Round = {}
        for side in SIDES if number % 2 else SIDES[::-1]:
            run = timed(image, chosen.mib, side, chosen.touches, chosen.warm_up, number)
            figures[side.name] = run
            print(
                f"{placement}, round {number}/{chosen.rounds}  {side.name:<24}"
                f"p50 {run['p50_us']:7.1f} us   p99 {run['p99_us']:7.1f} us",
                flush=True,
            )
        rounds.append(figures)
    return rounds


def count_calls(image: Path, mib: int) -> dict[str, Calls]:
    calls: dict[str, Calls] = {}
    for side in SIDES:
        print(f"counting system calls  {side.name}", flush=True)
        calls[side.name] = counted(image, mib, side)
    return calls


def print_result(placements: dict[str, list[report.Round]], calls: dict[str, Calls]) -> None:
    for placement, rounds in placements.items():
        print(f"\n{placement}: medians of {len(rounds)} rounds")
        print(*report.table([side.name for side in SIDES], rounds), sep="\n")
        print(f"\n{placement}: ratios, median (each round)")
        print(*report.ratio_lines(rounds), sep="\n")
    print("\nsystem calls a page")
    print(*report.call_lines(calls), sep="\n")


def main() -> int:
    chosen = options()
    if shutil.which("strace") is None:
        print("strace is missing. Install it: apt-get install strace", file=sys.stderr)
        return 69
    subprocess.run(["make", "-s", "-C", BENCH, f"BUILD={PROGRAMS}"], check=True)
    machine = report.machine()
    if os.getloadavg()[0] > BUSY_LOAD:
        print(f"the machine is not quiet (load {machine['load_before']}): these figures are worth little")
    placements: dict[str, list[report.Round]] = {}
    with tempfile.TemporaryDirectory(prefix="pageferry-bench-") as folder:
        image = Path(folder) / "image"
        subprocess.run([PROGRAMS / "make_image", image, str(chosen.mib)], check=True)
        try:
            for placement in chosen.placement or PLACEMENTS:
                with placed(placement):
                    placements[placement] = measure(image, chosen, placement)
            calls = count_calls(image, chosen.mib)
        except RunFailed as failed:
            print(f"bench failed: {failed}", file=sys.stderr)
            return 1
    print_result(placements, calls)
    everything = {"machine": machine, "placements": placements, "syscalls": calls}
    chosen.output.write_text(json.dumps(everything, indent=1) + "\n")
    print(f"\nall figures: {chosen.output}")
    print("bench: " + json.dumps(report.closing(placements, calls)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""From the rounds' figures to ratios, tables, and the closing line."""

import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Calls, Figures

Round = dict[str, Figures]  # name of the side -> its figures


@dataclass(frozen=True)
class Ratio:
    """One figure of one side to the same figure of another, within each round."""

    name: str
    side: str
    floor: str
    figure: str
    budget: float | None  # what it may be; None: shown for comparison

    def of(self, rounds: list[Round]) -> list[float]:
        return [figures[self.side][self.figure] / figures[self.floor][self.figure] for figures in rounds]

    def median(self, rounds: list[Round]) -> float:
        return statistics.median(self.of(rounds))


# Budgets: docs/benchmarks.md says where they come from.
RATIOS = (
    Ratio("minor_ratio_p50", "minor ours", "minor floor", "p50_us", 1.15),
    Ratio("remote_ratio_p50", "remote ours", "remote floor", "p50_us", 1.25),
    Ratio("remote_ratio_p99", "remote ours", "remote floor", "p99_us", 1.4),
    Ratio("grpcio_ratio_p50", "remote grpcio server", "remote floor", "p50_us", None),
)


def table(sides: list[str], rounds: list[Round]) -> list[str]:
    """Medians over the rounds, with the p50's span: a wide one says that the machine was not quiet."""
    lines = [f"{'side':<24}{'p50 us':>9}{'(min - max)':>16}{'p99 us':>9}{'p99.9 us':>10}{'faults/s':>10}"]
    for side in sides:
        p50, p99, p999, rate = (
            [figures[side][name] for figures in rounds]
            for name in ("p50_us", "p99_us", "p999_us", "rate_per_s")
        )
        lines.append(
            f"{side:<24}{statistics.median(p50):>9.1f}{f'({min(p50):.1f} - {max(p50):.1f})':>16}"
            f"{statistics.median(p99):>9.1f}{statistics.median(p999):>10.1f}{statistics.median(rate):>10.0f}"
        )
    return lines


def ratio_lines(rounds: list[Round]) -> list[str]:
    lines = []
    for ratio in RATIOS:
        middle = ratio.median(rounds)
        verdict = ""
        if ratio.budget is not None:
            verdict = f"  budget {ratio.budget:.2f}: " + ("kept" if middle <= ratio.budget else "EXCEEDED")
        each = " ".join(f"{value:.2f}" for value in ratio.of(rounds))
        lines.append(f"{ratio.name:<20}{middle:>6.2f}  ({each}){verdict}")
    return lines


def call_lines(calls: dict[str, Calls]) -> list[str]:
    lines = []
    for side, roles in calls.items():
        for role, by_name in roles.items():
            named = " ".join(f"{name} {count:g}" for name, count in by_name.items() if name != "total")
            lines.append(f"{side:<24}{role:<9}{by_name['total']:>6.2f}  {named}")
    return lines


def closing(placements: dict[str, list[Round]], calls: dict[str, Calls]) -> dict[str, Any]:
    """The last line: the ratios as it is used, those on one CPU, and system calls a page by side and role."""
    ratios = {
        placement: {ratio.name: round(ratio.median(rounds), 3) for ratio in RATIOS}
        for placement, rounds in placements.items()
    }
    line: dict[str, Any] = dict(ratios.get("unpinned", {}))
    if "one-cpu" in ratios:
        line["one_cpu"] = ratios["one-cpu"]
    line["syscalls"] = {
        side.replace(" ", "_"): {role: by_name["total"] for role, by_name in roles.items()}
        for side, roles in calls.items()
    }
    return line


def machine() -> dict[str, str | int]:
    """What the figures were taken on; absolutes mean nothing without it."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    return {
        "kernel": platform.release(),
        "processor": processor,
        "cpus": len(os.sched_getaffinity(0)),
        "clocksource": _lines("/sys/devices/system/clocksource/clocksource0/current_clocksource")[0],
        "congestion_control": _lines("/proc/sys/net/ipv4/tcp_congestion_control")[0],
        "load_before": _lines("/proc/loadavg")[0].split()[0],
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else ["unknown"]

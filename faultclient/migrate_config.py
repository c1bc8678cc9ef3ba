# SPDX-License-Identifier: Apache-2.0
"""Every option of `faultclient migrate`; in the environment FAULTCLIENT_MIGRATE_ and the flag's name."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final, Self

import click

from faultclient.config import Decorator, data_address, image_name, session_name
from faultclient.session import Postcopy
from pageferry.limits import (
    DEFAULT_CLIENT_CONTROL_ADDRESS,
    DEFAULT_COMPLETION_TIMEOUT_PER_GIB_S,
    DEFAULT_MAX_DOWNTIME_MS,
    DEFAULT_PROGRESS_TIMEOUT_S,
    DEFAULT_ROUNDS_MAX,
    DEFAULT_SERVER_CONTROL_ADDRESS,
)

RATE: Final = re.compile(r"(\d+(?:\.\d+)?)([kMG]?)(bit|B)?/?s?")
SCALE: Final = {"": 1, "k": 1000, "M": 1_000_000, "G": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class MigrateOptions:
    """What is made of flags and environment."""

    source: str
    target: str
    source_for_target: str
    data_address: str
    image: str
    vm: str
    session: str
    postcopy: str
    manual_switchover: bool
    max_downtime_ms: int
    bandwidth_bytes_per_s: int  # 0: what the link has
    rounds_max: int
    completion_timeout_per_gib_s: int
    progress_timeout_s: int
    report: Path | None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """`given`: the options below, by their names."""
        return cls(
            source=given["source"],
            target=given["target"],
            source_for_target=given["source_for_target"] or given["source"],
            data_address=given["data_address"],
            image=given["image"] or given["vm"],
            vm=given["vm"],
            session=given["session"],
            postcopy=given["postcopy"],
            manual_switchover=given["manual_switchover"],
            max_downtime_ms=given["max_downtime_ms"],
            bandwidth_bytes_per_s=given["bandwidth"] or 0,
            rounds_max=given["rounds_max"],
            completion_timeout_per_gib_s=given["completion_timeout_per_gib"],
            progress_timeout_s=given["progress_timeout"],
            report=given["report"],
        )


class ByteRate(click.ParamType[int]):
    """10MB/s, 800Mbit/s, 125000000: bytes per second unless it says bit."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = RATE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no rate: 100MB/s, 800Mbit/s, or bytes per second", param, context)
        rate = float(match[1]) * SCALE[match[2]] / (8 if match[3] == "bit" else 1)
        if not 1 <= rate < 2**63:
            self.fail(f"{value!r} is out of range", param, context)
        return int(rate)


def default_session(context: click.Context, param: click.Parameter, value: str | None) -> str:
    """A new name, unless one is given."""
    import uuid

    return session_name(context, param, value if value is not None else f"move-{uuid.uuid4().hex[:12]}")


OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--source",
        default=DEFAULT_SERVER_CONTROL_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Control port of the page server where the guest runs.",
    ),
    click.option(
        "--target",
        default=DEFAULT_CLIENT_CONTROL_ADDRESS,
        show_default=True,
        metavar="ADDRESS",
        help="Control port of the fault client where it is to run.",
    ),
    click.option(
        "--data-address",
        required=True,
        callback=data_address,
        metavar="ADDRESS",
        help="Data port of the page server, as the target reaches it.",
    ),
    click.option(
        "--source-for-target",
        metavar="ADDRESS",
        help="Control port of the page server as the target reaches it.  [default: --source]",
    ),
    click.option("--vm", required=True, metavar="NAME", help="VM at the target that waits for the guest."),
    click.option(
        "--image",
        callback=lambda context, param, value: value and image_name(context, param, value),
        metavar="NAME",
        help="The VM's name at the source.  [default: --vm]",
    ),
    click.option(
        "--session",
        callback=default_session,
        metavar="NAME",
        help="Name of this move. Given again, the same move is watched, whatever became of the command that "
        "began it.  [default: a new one]",
    ),
    click.option(
        "--postcopy",
        type=click.Choice([one.value for one in Postcopy]),
        default=Postcopy.ALLOW.value,
        show_default=True,
        help="allow: round by round, then with pages missing if the guest writes too fast. forbid: only with "
        "every page there. at-once: hand over first, bring the pages then.",
    ),
    click.option(
        "--manual-switchover",
        is_flag=True,
        help="Round after round, until `faultclient switch-over` is called.",
    ),
    click.option(
        "--max-downtime-ms",
        type=click.IntRange(1, 600_000),
        default=DEFAULT_MAX_DOWNTIME_MS,
        show_default=True,
        metavar="MS",
        help="How long the guest may be expected to stand still for precopy to end.",
    ),
    click.option(
        "--bandwidth",
        type=ByteRate(),
        default=None,
        metavar="RATE",
        help="Never more than this comes in at the target, faults and all: 100MB/s, 800Mbit/s.  "
        "[default: what the link has]",
    ),
    click.option(
        "--rounds-max",
        type=click.IntRange(1, 10_000),
        default=DEFAULT_ROUNDS_MAX,
        show_default=True,
        metavar="COUNT",
        help="Rounds of precopy.",
    ),
    click.option(
        "--completion-timeout-per-gib",
        type=click.IntRange(1, 86_400),
        default=DEFAULT_COMPLETION_TIMEOUT_PER_GIB_S,
        show_default=True,
        metavar="SECONDS",
        help="Precopy takes no longer, for each GiB of memory.",
    ),
    click.option(
        "--progress-timeout",
        type=click.IntRange(1, 86_400),
        default=DEFAULT_PROGRESS_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="Precopy ends when for so long no fewer pages were missing.",
    ),
    click.option(
        "--report",
        type=click.Path(path_type=Path, dir_okay=False, writable=True),
        default=None,
        metavar="FILE",
        help="Write a page about the move: phases, when which memory came, how long faults waited.",
    ),
)


def migrate_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command all of them."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)

# SPDX-License-Identifier: Apache-2.0
"""What a service makes of the probe at its start: it refuses, or goes on with less and says so, a line each.

Nothing is refused that may work: a service needs no userfaultfd of its own, its VMMs make theirs, perhaps
with rights that it lacks. So what it could not try is said, and what it tried and found absent decides. The
probe is made once a process, and imports nothing but the C library: faults are served before grpc is there.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Final

from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageferry.service.native import Fact, Verdict, probe

# Those that concern whoever brings memory here, and whoever moves it away. A pool of huge pages is left
# alone at a start, so nothing is known of it.
ARRIVING: Final = frozenset(
    {"kernel_faults", "shared_memory", "private_memory", "poison", "pagemap_scan", "thp_shared"}
)
FILLED_BEFORE: Final = frozenset({"headroom"})  # where pages come before the guest runs
LEAVING: Final = frozenset({"dirty_tracking", "pagemap_scan"})


@cache
def abilities() -> tuple[Fact, ...]:
    return probe(spare_pools=True)


def fact(name: str, facts: Sequence[Fact]) -> Fact:
    return next(one for one in facts if one.name == name)


def check_arriving(*, filled_before: bool) -> None:
    """Before any VM is taken. PageferryError: this kernel can serve none, whoever asks."""
    facts = abilities()
    right, usable = fact("userfaultfd", facts), fact("usable", facts)
    if right.verdict is not Verdict.GOOD:
        # Rights of ours: the VMM may have others.
        log.info(
            "not_tried",
            because=f"userfaultfd: {right.found}",
            remedy="run `faultclient doctor` as the VMM's user",
        )
    elif usable.verdict is Verdict.BAD:
        raise refusal(facts)
    say(facts, ARRIVING | FILLED_BEFORE if filled_before else ARRIVING)


def say_leaving() -> None:
    """Where VMs may be moved away from. Images are served all the same."""
    say(abilities(), LEAVING)


def check_leaving() -> None:
    """Before a VM is made one that can be moved away. PageferryError: its writes cannot be seen here."""
    tracking = fact("dirty_tracking", abilities())
    if tracking.verdict is Verdict.LESS:
        raise PageferryError(Reason.UNSUPPORTED, tracking.found, tracking.remedy or "")


def say(facts: Sequence[Fact], concern: Collection[str]) -> None:
    """A line for each that is less than it could be. What has failed is said whoever it concerns."""
    for one in facts:
        if one.verdict is Verdict.FAILED:
            log.warning("probe_failed", fact=one.name, found=one.found, remedy=one.remedy)
        elif one.name in concern and one.verdict in (Verdict.LESS, Verdict.BAD):
            log.warning("degraded", fact=one.name, found=one.found, remedy=one.remedy)


def refusal(facts: Sequence[Fact]) -> PageferryError:
    """Of a machine that is not usable: the first fact that no VM can do without."""
    decisive = ("userfaultfd", "kernel_faults", "shared_memory", "private_memory")
    cause = next(
        one for name in decisive if (one := fact(name, facts)).verdict in (Verdict.BAD, Verdict.FAILED)
    )
    right = cause.name in ("userfaultfd", "kernel_faults")
    reason = Reason.NOT_ALLOWED if right and cause.verdict is Verdict.BAD else Reason.UNSUPPORTED
    return PageferryError(reason, f"no VM can be served: {cause.name}: {cause.found}", cause.remedy or "")

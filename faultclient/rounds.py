# SPDX-License-Identifier: Apache-2.0
"""When a precopy is good enough, when it never will be, and how long the guest would stand still.

Pure: numbers and times go in, a verdict comes out. Handing over now costs about

    fixed + (missing pages + pages dirtied since the newest round) * page bytes / rate

where the rate is what arrived while something was missing, and `fixed` (stop, save, freeze, load, resume) is
what an earlier move of this process took, or a guess.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from faultclient.session import Postcopy
from pageferry.limits import PAGE_BYTES
from pageferry.reasons import Reason

GIB: Final = 1 << 30
# QEMU with a 384 MiB guest: 15 ms to stop and save, 20 ms to load and go on; a final round of 1 ms a GiB.
FIXED_S: Final = 0.06
# Rounds that name nearly as many pages as the best one before: the guest writes faster than pages travel.
STALLED_ROUNDS: Final = 3
BETTER: Final = 0.9
# Between two rounds at least: each is a scan of the guest's page tables.
ROUND_EVERY_S: Final = 0.1
# What the rate is taken over: older samples fade.
RATE_WINDOW_S: Final = 2.0


class Verdict(Enum):
    WAIT = "pages are on their way"
    ROUND = "another round is due"
    HAND_OVER = "the guest may be stopped"
    ABORT = "it would never come to an end"


@dataclass(frozen=True, slots=True)
class Limits:
    postcopy: Postcopy
    max_downtime_s: float
    rounds_max: int
    completion_s_per_gib: float  # for the whole precopy; the smallest guest counts as 1 GiB
    progress_s: float  # without fewer pages missing than ever before
    manual: bool = False  # round after round until somebody says so


class Rate:
    """Bytes per second, of the time in which there was something to bring."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self._last: tuple[float, int, bool] | None = None

    def see(self, now_s: float, fetched_bytes: int, busy: bool) -> None:
        if self._last is not None and self._last[2]:
            self._seconds += now_s - self._last[0]
            self._bytes += fetched_bytes - self._last[1]
            if self._seconds > RATE_WINDOW_S:
                self._bytes, self._seconds = self._bytes / 2, self._seconds / 2
        self._last = (now_s, fetched_bytes, busy)

    @property
    def bytes_per_s(self) -> float:
        """0: not known yet."""
        return self._bytes / self._seconds if self._seconds > 0 else 0.0


class Rounds:
    """One precopy."""

    def __init__(self, limits: Limits, page_count: int, now_s: float, fixed_s: float = FIXED_S) -> None:
        self.number = 0  # rounds that have been read
        self.named = 0  # pages that the newest one named newer than held
        self.dirty_per_s = 0.0
        self.because = ""  # why the verdict is to end it
        self._limits = limits
        self._page_count = page_count
        self._fixed_s = fixed_s
        self._began_s = now_s
        self._completion_s = limits.completion_s_per_gib * max(page_count * PAGE_BYTES / GIB, 1)
        self._read_s = now_s
        self._rate = Rate()
        self._best_named = page_count
        self._stalled = 0
        self._least_missing = page_count + 1
        self._progress_s = now_s

    def read(self, now_s: float, named: int) -> None:
        """The map of a new round has been read."""
        if self.number > 0:
            self.dirty_per_s = named / max(now_s - self._read_s, ROUND_EVERY_S / 2)
            self._stalled = 0 if named < BETTER * self._best_named else self._stalled + 1
            self._best_named = min(named, self._best_named)
        self.number += 1
        self.named = named
        self._read_s = now_s

    def look(self, now_s: float, *, missing: int, fetched_bytes: int, paused: Reason | None) -> Verdict:
        """What is to be done now. `missing`: pages whose newest bytes are not here."""
        self._rate.see(now_s, fetched_bytes, missing > 0)
        if missing < self._least_missing:
            self._least_missing, self._progress_s = missing, now_s
        if self.number > 1 and self.fits(now_s, missing) and not self._limits.manual and paused is None:
            self.because = f"{missing} pages are missing: the guest stands still for a moment only"
            return Verdict.HAND_OVER
        if (why := self._limit_reached(now_s, missing)) and not self._limits.manual:
            self.because = why
            # Postcopy needs a link.
            forbidden = self._limits.postcopy is Postcopy.FORBID or paused is not None
            return Verdict.ABORT if forbidden else Verdict.HAND_OVER
        due = missing == 0 and now_s >= self._read_s + ROUND_EVERY_S
        return Verdict.ROUND if due and paused is None else Verdict.WAIT

    def fits(self, now_s: float, missing: int) -> bool:
        downtime_s = self.downtime_s(now_s, missing)
        return downtime_s is not None and downtime_s <= self._limits.max_downtime_s

    def downtime_s(self, now_s: float, missing: int) -> float | None:
        """Expected, if the guest were stopped now and every page waited for. None: the rate is not known."""
        dirtied = min(self.dirty_per_s * (now_s - self._read_s), self._page_count)
        pages = missing + dirtied
        if pages < 1:
            return self._fixed_s
        rate = self._rate.bytes_per_s
        return self._fixed_s + pages * PAGE_BYTES / rate if rate > 0 else None

    def _limit_reached(self, now_s: float, missing: int) -> str:
        """Why it will not get better. The fewer pages are missing then, the better: so most of them wait for
        the end of a round."""
        limits = self._limits
        if now_s - self._began_s > self._completion_s:
            return f"precopy has not come to an end in {self._completion_s:g} s"
        if now_s - self._progress_s > limits.progress_s:
            return f"no fewer pages were missing for {limits.progress_s:g} s"
        if missing == 0 and self.number >= limits.rounds_max:
            return f"{self.number} rounds have not been enough"
        stalled = self._stalled >= STALLED_ROUNDS and limits.postcopy is not Postcopy.FORBID
        if missing == 0 and stalled:
            return f"the guest writes as fast as pages travel: {self.dirty_per_s:.0f} pages a second"
        return ""

# SPDX-License-Identifier: Apache-2.0
"""When precopy is good enough: guests of several kinds on a link, step by step, in virtual time."""

from dataclasses import dataclass, replace

import pytest

from faultclient.rounds import FIXED_S, Limits, Rate, Rounds, Verdict
from faultclient.session import Postcopy
from pageferry.limits import PAGE_BYTES
from pageferry.reasons import Reason

GIB_PAGES = (1 << 30) // PAGE_BYTES
LINK = 30_000.0  # pages per second: about 1 Gbit/s
STEP_S = 0.02
LIMITS = Limits(
    postcopy=Postcopy.ALLOW, max_downtime_s=0.9, rounds_max=30, completion_s_per_gib=150.0, progress_s=150.0
)


@dataclass
class Trace:
    """A guest that writes `dirty_per_s` pages a second, over and over the same `working_set`."""

    limits: Limits = LIMITS
    pages: int = GIB_PAGES // 4
    working_set: int = 0
    dirty_per_s: float = 0.0
    link_pages_per_s: float = LINK
    link_down_at_s: float = float("inf")

    def run(self, until_s: float = 1000.0) -> tuple[Verdict, Rounds, float, float]:
        """The verdict that ends it, when that was, and how many pages were missing then."""
        now_s, read_s, missing, fetched = 0.0, 0.0, 0.0, 0.0
        rounds = Rounds(self.limits, self.pages, now_s)
        verdict = Verdict.ROUND
        while verdict in (Verdict.ROUND, Verdict.WAIT):
            down = now_s >= self.link_down_at_s
            if verdict is Verdict.ROUND and not down:
                since_s = now_s - read_s
                named = min(self.dirty_per_s * since_s, self.working_set) if rounds.number else self.pages
                missing, read_s = named, now_s
                rounds.read(now_s, int(named))
            now_s += STEP_S
            arrived = 0.0 if down else min(missing, self.link_pages_per_s * STEP_S)
            missing, fetched = missing - arrived, fetched + arrived
            verdict = rounds.look(
                now_s,
                missing=int(missing),
                fetched_bytes=int(fetched * PAGE_BYTES),
                paused=Reason.GOING_AWAY if down else None,
            )
            assert now_s < until_s, "it goes on for ever"
        return verdict, rounds, now_s, missing


def test_an_idle_guest_takes_two_rounds() -> None:
    verdict, rounds, now_s, missing = Trace().run()
    assert verdict is Verdict.HAND_OVER
    assert rounds.number == 2
    assert missing == 0
    assert now_s < 1.3 * GIB_PAGES / 4 / LINK + 1


def test_one_that_writes_slowly_converges() -> None:
    verdict, rounds, now_s, missing = Trace(working_set=20_000, dirty_per_s=3_000).run()
    assert verdict is Verdict.HAND_OVER
    assert "for a moment only" in rounds.because
    assert rounds.number <= 4
    assert rounds.downtime_s(now_s, int(missing)) <= LIMITS.max_downtime_s  # type: ignore[operator]


def test_a_stricter_limit_takes_more_of_them() -> None:
    guest = Trace(working_set=60_000, dirty_per_s=12_000)
    _, loose, _, _ = guest.run()
    _, strict, _, _ = replace(guest, limits=replace(LIMITS, max_downtime_s=0.12)).run()
    assert strict.number > loose.number


@pytest.mark.parametrize(
    "postcopy, verdict", [(Postcopy.ALLOW, Verdict.HAND_OVER), (Postcopy.FORBID, Verdict.ABORT)]
)
def test_one_that_writes_faster_than_the_link(postcopy: Postcopy, verdict: Verdict) -> None:
    """Every round names the whole working set again."""
    guest = Trace(replace(LIMITS, postcopy=postcopy), working_set=50_000, dirty_per_s=100_000)
    found, rounds, _, missing = guest.run()
    assert found is verdict
    if postcopy is Postcopy.ALLOW:
        assert "as fast as pages travel" in rounds.because
        assert rounds.number <= 6
        assert missing == 0  # at the end of a round: never fewer
    else:
        assert rounds.number == LIMITS.rounds_max
        assert "30 rounds" in rounds.because


def test_the_round_limit() -> None:
    guest = Trace(replace(LIMITS, rounds_max=3, max_downtime_s=0.07), working_set=30_000, dirty_per_s=20_000)
    verdict, rounds, _, _ = guest.run()
    assert verdict is Verdict.HAND_OVER
    assert rounds.number == 3
    assert "3 rounds" in rounds.because


def test_the_completion_timeout_goes_by_the_size_of_memory() -> None:
    limits = replace(LIMITS, postcopy=Postcopy.FORBID, rounds_max=1_000_000, completion_s_per_gib=20.0)
    busy = Trace(limits, pages=2 * GIB_PAGES, working_set=GIB_PAGES, dirty_per_s=100_000)
    verdict, rounds, now_s, _ = busy.run()
    assert verdict is Verdict.ABORT
    assert 40 < now_s < 41
    assert "40 s" in rounds.because


def test_a_small_guest_has_the_time_of_one_gib() -> None:
    limits = replace(LIMITS, postcopy=Postcopy.FORBID, rounds_max=1_000_000, completion_s_per_gib=20.0)
    _, _, now_s, _ = Trace(limits, pages=60_000, working_set=60_000, dirty_per_s=100_000).run()
    assert 20 < now_s < 21


def test_no_progress() -> None:
    """A link that brings a page now and then."""
    guest = Trace(replace(LIMITS, progress_s=5.0), link_pages_per_s=0.0)
    verdict, rounds, now_s, _ = guest.run()
    assert verdict is Verdict.HAND_OVER  # postcopy is what is left
    assert 5 < now_s < 6
    assert "no fewer pages" in rounds.because


def test_a_link_that_is_down_ends_it() -> None:
    """Postcopy is allowed, and of no use: the guest would wait for pages that do not come."""
    verdict, _, now_s, _ = Trace(replace(LIMITS, progress_s=5.0), link_down_at_s=1.0).run()
    assert verdict is Verdict.ABORT
    assert now_s > 5


def test_manual_knows_no_limits() -> None:
    guest = Trace(replace(LIMITS, manual=True, rounds_max=2, progress_s=1.0))
    with pytest.raises(AssertionError, match="for ever"):
        guest.run(until_s=60.0)


# --------------------------------------------------------------------------------------- what it reckons with


def test_the_rate_is_that_of_the_time_in_which_something_was_missing() -> None:
    rate = Rate()
    assert rate.bytes_per_s == 0
    rate.see(0.0, 0, True)
    rate.see(1.0, 100, False)
    rate.see(9.0, 100, True)  # eight seconds of silence do not count
    rate.see(10.0, 200, True)
    assert rate.bytes_per_s == pytest.approx(100)


def test_the_rate_follows_the_link() -> None:
    rate = Rate()
    fetched = 0
    for second in range(20):
        rate.see(second, fetched, True)
        fetched += 1000 if second < 10 else 100
    assert rate.bytes_per_s < 200


def test_the_downtime_that_it_expects() -> None:
    rounds = Rounds(LIMITS, GIB_PAGES, 0.0)
    assert rounds.downtime_s(0.0, 0) == FIXED_S
    assert rounds.downtime_s(0.0, 1) is None  # no rate is known
    rounds.read(0.0, GIB_PAGES)
    rounds.look(0.0, missing=GIB_PAGES, fetched_bytes=0, paused=None)
    rounds.look(1.0, missing=GIB_PAGES - 1000, fetched_bytes=1000 * PAGE_BYTES, paused=None)
    assert rounds.downtime_s(1.0, 500) == pytest.approx(FIXED_S + 0.5)
    rounds.read(2.0, 100)  # 50 pages a second
    assert rounds.downtime_s(4.0, 400) == pytest.approx(FIXED_S + 0.5)
    slower = Rounds(LIMITS, GIB_PAGES, 0.0, fixed_s=0.3)
    assert slower.downtime_s(0.0, 0) == 0.3

# SPDX-License-Identifier: Apache-2.0
"""The VMs of one process: what is counted of all of them, and what is kept of those that were let go."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from faultclient.pager import Client
from faultclient.vms import Vm, Vms
from pageferry.host.handoff import Handoff
from pageferry.service import native
from tests.support.fake_pager import FakePager


class CountingPager(FakePager):
    """A little more at each look, while it runs."""

    def counters(self) -> dict[str, int]:
        if not self.closed:
            self.count["faults_total"] += 1
        return self.count

    def histogram(self, name: str) -> native.Histogram:
        return native.Histogram((2, *(0,) * (native.BUCKETS - 1)), 10)


@dataclass
class FakeClient:
    opened: list[CountingPager] = field(default_factory=list)

    def open(self, handoff: Handoff, **_: Any) -> CountingPager:
        self.opened.append(CountingPager())
        return self.opened[-1]

    def close(self) -> None:
        pass


class _Handoff(SimpleNamespace):
    def __enter__(self) -> "_Handoff":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def client() -> Iterator[FakeClient]:
    made = FakeClient()
    yield made
    for pager in made.opened:
        pager.let_go()


def took(vms: Vms) -> Vm:
    handoff = _Handoff(length_bytes=4096, pid=1, regions=(), lands_first=False, layout=None)
    given: dict[str, Any] = {"image": "vm", "data_address": "127.0.0.1:1", "background": True, "spin_us": 0}
    return vms.take(cast(Handoff, handoff), **given)


def test_those_that_were_let_go_are_numbers_alone(client: FakeClient) -> None:
    """Each pager that there ever was stayed here, with all of its histograms."""
    with Vms(client=cast(Client, client)) as vms:
        stays = took(vms)
        for _ in range(50):
            vms.let_go(took(vms))
        gone = [weakref.ref(pager) for pager in client.opened[1:]]
        for pager in client.opened[1:]:
            assert pager.closed
            pager.let_go()
        del pager, client.opened[1:]
        assert [one() for one in gone] == [None] * 50
        assert not stays.pager.closed  # type: ignore[attr-defined]


def test_the_sums_do_not_change_by_it(client: FakeClient) -> None:
    with Vms(client=cast(Client, client)) as vms:
        assert vms.counters() == dict.fromkeys(native.COUNTERS, 0)
        assert vms.histogram("fault_fetch_ns") == native.Histogram((0,) * native.BUCKETS, 0)
        vm, _ = took(vms), took(vms)
        before = vms.counters()["faults_total"]
        for _ in range(2):  # again: nothing happens
            vms.let_go(vm)
            waits = vms.histogram("fault_fetch_ns")
            assert (waits.total, waits.counts[0], waits.sum, len(waits.counts)) == (4, 4, 20, native.BUCKETS)
        assert before == 2
        after = [vms.counters()["faults_total"] for _ in range(2)]
        assert after[0] >= before and after[1] == after[0] + 1  # the other one goes on

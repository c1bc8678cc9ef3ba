# SPDX-License-Identifier: Apache-2.0
"""Metrics: the data plane's under the names that C gives them, the control plane's by name, over HTTP."""

import asyncio
import contextlib

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pageferry.reasons import PageferryError
from pageferry.service import metrics, native
from pageferry.service.addresses import Address
from pageferry.service.metrics import DataPlane, answer, exposed, shown_buckets, summed

ANY_PORT = Address("127.0.0.1", 0)
COUNTERS = {name: number for number, name in enumerate(native.COUNTERS, start=100)}


def counts_of(*values: int) -> native.Histogram:
    counts = [0] * native.BUCKETS
    for value in values:
        counts[next(at for at, limit in enumerate(native.BUCKET_LIMITS) if value <= limit)] += 1
    return native.Histogram(tuple(counts), sum(values))


VALUES = (0, 1, 1023, 1024, 50_000, 1 << 30, 1 << 40)
FIGURES = DataPlane(lambda: COUNTERS, lambda name: counts_of(*VALUES))


def families(text: str) -> dict[str, Metric]:
    """By the names of their values: a counter `a_total` and a gauge `a` are two."""
    found = list(text_string_to_metric_families(text))
    return {family.name + ("_total" if family.type == "counter" else ""): family for family in found}


@pytest.fixture
def scraped() -> dict[str, Metric]:
    registry = CollectorRegistry()
    registry.register(FIGURES)
    return families(generate_latest(registry).decode())


def test_every_counter_of_c_is_there_under_its_name(scraped: dict[str, Metric]) -> None:
    for name, value in COUNTERS.items():
        family = scraped[f"pageferry_{name}"]
        assert [sample.value for sample in family.samples] == [value]
        assert family.type == ("counter" if name.endswith("_total") else "gauge")
        assert family.documentation == native.COUNTERS[name]


@pytest.mark.parametrize("name", native.HISTOGRAMS)
def test_every_histogram_of_c_is_there_under_its_name(name: str, scraped: dict[str, Metric]) -> None:
    family = scraped[f"pageferry_{name}"]
    assert family.type == "histogram"
    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert samples[f"pageferry_{name}_count", None] == len(VALUES)
    assert samples[f"pageferry_{name}_sum", None] == sum(VALUES)
    for last in shown_buckets(name):
        limit = native.BUCKET_LIMITS[last]
        expected = sum(value <= limit for value in VALUES)
        assert samples[f"pageferry_{name}_bucket", str(limit)] == expected, limit


@pytest.mark.parametrize("name", native.HISTOGRAMS)
def test_few_buckets_are_shown_each_a_power_of_two_wide(name: str) -> None:
    limits = [native.BUCKET_LIMITS[at] for at in shown_buckets(name)]
    assert 10 <= len(limits) <= 30
    assert all((limit + 1) & limit == 0 for limit in limits)
    assert [limit + 1 for limit in limits[1:]] == [2 * (limit + 1) for limit in limits[:-1]]
    assert summed(name, counts_of(1 << 41).counts)[-2:] == [(str(limits[-1]), 0.0), ("+Inf", 1.0)]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"GET /metrics?name=a HTTP/1.0\r\n\r\n", 200),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/x HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\xff\xfe\r\n\r\n", 405),
        (b"\r\n\r\n", 405),
    ],
)
def test_requests(head: bytes, status: int) -> None:
    top, _, body = answer(head).partition(b"\r\n\r\n")
    assert top.startswith(f"HTTP/1.1 {status} ".encode())
    length = int(next(f for f in top.split(b"\r\n") if f.startswith(b"Content-Length: "))[16:])
    assert len(body) == (0 if head.startswith(b"HEAD") else length)


async def get(address: Address, request: bytes = b"GET /metrics HTTP/1.1\r\n\r\n") -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(request)
    read = await reader.read()
    writer.close()
    return read


def test_over_http_on_the_loop() -> None:
    async def scrape() -> bytes:
        async with exposed(ANY_PORT, FIGURES) as address:
            assert address is not None
            answers = await asyncio.gather(*(get(address) for _ in range(8)))
        with pytest.raises(ConnectionError):
            await get(address)
        return answers[-1]

    found = families(asyncio.run(scrape()).partition(b"\r\n\r\n")[2].decode())
    assert {
        "pageferry_faults_total",
        "pageferry_control_calls_total",
        "pageferry_serving",
        "pageferry_build_info",
    } <= set(found)
    assert "process_resident_memory_bytes" in found


def test_no_address_no_server() -> None:
    async def nothing() -> None:
        async with exposed(None, FIGURES) as address:
            assert address is None

    asyncio.run(nothing())
    assert b"pageferry_faults_total" not in answer(b"GET /metrics HTTP/1.1\r\n\r\n")


def test_an_address_that_is_taken() -> None:
    async def twice() -> None:
        async with exposed(ANY_PORT, FIGURES) as address, exposed(address, FIGURES):
            pass

    with pytest.raises(PageferryError, match="in use"):
        asyncio.run(twice())


def test_what_no_scraper_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head without an end, one that is too long, silence: each costs its connection and nothing else."""
    monkeypatch.setattr(metrics, "REQUEST_S", 0.2)

    async def attack() -> bytes:
        async with exposed(ANY_PORT, FIGURES) as address:
            assert address is not None
            for request in (b"GET /metrics", b"x" * (2 * metrics.REQUEST_BYTES_MAX) + b"\r\n\r\n", b""):
                try:
                    assert await get(address, request) == b""
                except ConnectionError:
                    continue
            return await get(address)

    assert b"pageferry_faults_total" in asyncio.run(attack())


def test_few_are_served_at_once_and_all_end_with_the_port() -> None:
    async def ended(reader: asyncio.StreamReader) -> bool:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        return True

    async def crowd() -> None:
        async with exposed(ANY_PORT, FIGURES) as address:
            assert address is not None
            silent = []
            for _ in range(metrics.REQUESTS_OPEN_MAX):
                silent.append(await asyncio.open_connection(address.host, address.port))
            one_too_many, writer = await asyncio.open_connection(address.host, address.port)
            assert await ended(one_too_many)
            writer.close()
            assert not silent[0][0].at_eof()
        for reader, writer in silent:
            assert await ended(reader)
            writer.close()

    asyncio.run(crowd())

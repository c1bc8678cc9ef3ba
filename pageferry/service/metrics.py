# SPDX-License-Identifier: Apache-2.0
"""Prometheus: control-plane metrics by name, and the data plane's counters passed through.

The data plane's names are those that C gives them (native/base/stats.h) behind `pageferry_`. Its histograms
have 320 buckets each, an eighth of a power of two wide. They go out as Prometheus histograms with a bucket a
power of two: histograms of several processes and times can be added up, quantiles cannot. Whoever wants the
finer ones asks the process itself (`faultclient run --json`).

Scrapes are answered on the process's own loop. A handle of the data plane belongs to one thread, so an HTTP
server with threads would read its counters while that thread does, or closes it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pageferry import __version__
from pageferry.limits import RUNS_MAX
from pageferry.service import native
from pageferry.service.addresses import Address, bound, listening
from pageferry.service.logs import log

PREFIX: Final = "pageferry_"

# ------------------------------------------------------------------------------------ the control plane's own

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
Info(f"{PREFIX}build", "what runs here", registry=REGISTRY).info({"version": __version__})

CALLS: Final = Counter(
    f"{PREFIX}control_calls",
    "calls on the control port that have ended, by what they ended with: OK or a reason",
    ["method", "reason"],
    registry=REGISTRY,
)
CALLS_OPEN: Final = Gauge(
    f"{PREFIX}control_calls_open", "calls open on the control port now", registry=REGISTRY
)
CALL_SECONDS: Final = Histogram(
    f"{PREFIX}control_call_seconds", "how long calls on the control port took", ["method"], registry=REGISTRY
)
SERVING: Final = Gauge(
    f"{PREFIX}serving", "what health says on the control port: 1 is SERVING", registry=REGISTRY
)

# ------------------------------------------------------------------------------------------- the data plane's

# Buckets that a histogram shows end just below a power of two, from the first of these to the second: 1 us to
# 34 s, and none to a full request. What is longer is in +Inf.
NS_SPAN: Final = (1 << 10, 1 << 35)
COUNT_SPAN: Final = (1, RUNS_MAX)


def shown_buckets(name: str) -> list[int]:
    """The buckets of C's that end where one of the shown ones does."""
    first, end = NS_SPAN if name.endswith("_ns") else COUNT_SPAN
    limits = enumerate(native.BUCKET_LIMITS)
    return [at for at, limit in limits if first <= limit + 1 <= end and (limit & (limit + 1)) == 0]


def summed(name: str, counts: Sequence[int]) -> list[tuple[str, float]]:
    """(le, how many values are not above it), as the exposition wants it."""
    seen, at, buckets = 0, 0, []
    for last in shown_buckets(name):
        seen += sum(counts[at : last + 1])
        at = last + 1
        buckets.append((str(native.BUCKET_LIMITS[last]), float(seen)))
    return [*buckets, ("+Inf", float(sum(counts)))]


class DataPlane(Collector):
    """Reads the C counters when somebody scrapes, on the loop's thread."""

    def __init__(
        self,
        counters: Callable[[], Mapping[str, int]],
        histogram: Callable[[str], native.Histogram],
    ) -> None:
        self._counters = counters
        self._histogram = histogram

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name, value in self._counters().items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(PREFIX + name, native.COUNTERS[name], value=value)
        for name, text in native.HISTOGRAMS.items():
            seen = self._histogram(name)
            yield HistogramMetricFamily(PREFIX + name, text, summed(name, seen.counts), sum_value=seen.sum)


# ------------------------------------------------------------------------------------------------------ HTTP

TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_BYTES_MAX: Final = 8192
REQUEST_S: Final = 5.0
REQUESTS_OPEN_MAX: Final = 16


def answer(head: bytes) -> bytes:
    """The whole answer to a request's head. Always in the text format: in OpenMetrics the counter
    `connections_total` and the gauge `connections` would be one family."""
    method, _, target = head.decode("latin-1").partition("\r\n")[0].partition(" ")
    status, content_type, body = HTTPStatus.OK, "text/plain; charset=utf-8", b""
    if method not in ("GET", "HEAD"):
        status = HTTPStatus.METHOD_NOT_ALLOWED
    elif target.partition(" ")[0].partition("?")[0] != "/metrics":
        status, body = HTTPStatus.NOT_FOUND, b"metrics are at /metrics\n"
    else:
        content_type, body = TEXT_FORMAT, generate_latest(REGISTRY)
    header = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n"
    )
    return header.encode("latin-1") + (b"" if method == "HEAD" else body)


class _Scrapes:
    """One request a connection, few at once, and none for long."""

    def __init__(self) -> None:
        self._open: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= REQUESTS_OPEN_MAX:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, EOFError, asyncio.LimitOverrunError, ConnectionError) as error:
            log.debug("scrape_failed", error=repr(error))
        finally:
            writer.transport.abort()

    async def end(self) -> None:
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)


@asynccontextmanager
async def exposed(listen: Address | None, data_plane: DataPlane) -> AsyncIterator[Address | None]:
    """Serves GET /metrics over HTTP while the block lasts; gives the address, with its port. None: not asked.

    PageferryError: it cannot listen there.
    """
    if listen is None:
        yield None
        return
    made = listening(listen)
    address = bound(made, listen)
    scrapes = _Scrapes()
    server = await asyncio.start_server(scrapes.accept, sock=made, limit=REQUEST_BYTES_MAX)
    REGISTRY.register(data_plane)
    try:
        yield address
    finally:
        REGISTRY.unregister(data_plane)
        server.close()
        await scrapes.end()
        await server.wait_closed()
        if address.path is not None:
            address.path.unlink(missing_ok=True)

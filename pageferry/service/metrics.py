# SPDX-License-Identifier: Apache-2.0
"""Prometheus: control-plane metrics by name, and the data plane's counters passed through.

The data plane's names are those that C gives them (native/base/stats.h) behind `pageferry_`. Its histograms
go out as summaries, a few quantiles of each: 320 buckets a histogram would be most of the page.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from pageferry.service import native
from pageferry.service.addresses import Address

PREFIX: Final = "pageferry_"
QUANTILES: Final = (0.5, 0.9, 0.99, 0.999)

CALLS: Final = Counter(f"{PREFIX}control_calls", "calls begun on the control port", ["method"])
CALLS_OPEN: Final = Gauge(f"{PREFIX}control_calls_open", "calls open on the control port now")
CALL_SECONDS: Final = Histogram(
    f"{PREFIX}control_call_seconds", "how long calls on the control port took", ["method"]
)


class DataPlane(Collector):
    """Reads the C counters when somebody scrapes."""

    def __init__(
        self, counters: Callable[[], dict[str, int]], histogram: Callable[[str], native.Histogram]
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
            yield SummaryMetricFamily(PREFIX + name, text, count_value=seen.total, sum_value=seen.sum)
            quantiles = GaugeMetricFamily(
                f"{PREFIX}{name}_quantile", f"quantiles: {text}", labels=["quantile"]
            )
            for share in QUANTILES:
                quantiles.add_metric([str(share)], seen.quantile(share))
            yield quantiles


@contextmanager
def exposed(listen: Address | None, data_plane: DataPlane) -> Iterator[None]:
    """Serves /metrics over HTTP, on a thread of prometheus_client's own, while the block lasts."""
    REGISTRY.register(data_plane)
    server = None
    try:
        if listen is not None:
            server, _ = start_http_server(listen.port, addr=listen.host)
        yield
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
        REGISTRY.unregister(data_plane)

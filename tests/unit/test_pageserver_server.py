# SPDX-License-Identifier: Apache-2.0
"""The order in which a page server ends, whatever ends it."""

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pageferry.service.addresses import Address
from pageferry.service.ready import Ready
from pageserver.config import ServeOptions
from pageserver.server import bring_up
from pageserver.sessions import Sessions


def test_targets_are_waited_for_while_they_can_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a signal comes before all images are read: a VM may have been handed over by then."""
    control = tmp_path / "control"
    options = ServeOptions(
        data_listen=Address.parse(f"unix:{tmp_path}/data"),
        control_listen=Address.parse(f"unix:{control}"),
        metrics_listen=None,
        threads=1,
        drain_timeout_s=1.0,
        ready=Ready(),
        progress=False,
    )
    reached: list[bool] = []

    async def end(sessions: Sessions) -> None:
        with socket.socket(socket.AF_UNIX) as target:
            reached.append(target.connect_ex(str(control)) == 0)

    monkeypatch.setattr(Sessions, "end", end)

    async def ends_early() -> None:
        async with AsyncExitStack() as stack:
            await bring_up(options, stack)

    asyncio.run(ends_early())
    assert reached == [True]

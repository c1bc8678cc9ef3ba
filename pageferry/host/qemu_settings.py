# SPDX-License-Identifier: Apache-2.0
"""What QEMU's migration must be set to for a move, and back again.

A VM left with x-ignore-shared would lose its memory in a later migration by somebody else. So that is off at
the end whoever has set it: it may have been one of ours that was killed.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from pageferry.host.qmp import Qmp
from pageferry.reasons import PageferryError, Reason

GIVE_BACK_S: Final = 2.0
# Other ways of migrating: they do not go together with ours, or wait for somebody to say "go on".
OTHER_WAYS: Final = (
    "postcopy-ram", "multifd", "return-path", "switchover-ack", "x-colo", "background-snapshot", "mapped-ram",
    "pause-before-switchover", "compress", "block", "zero-copy-send", "release-ram", "rdma-pin-all",
)  # fmt: skip
# max-bandwidth: the default of 128 MiB/s holds for a socket on this host too.
PARAMETERS: Final[Mapping[str, Any]] = {"max-bandwidth": 10**11, "tls-creds": "", "mode": "normal"}


class Settings:
    """Remembers what was there before the first set()."""

    def __init__(self) -> None:
        self._capabilities: dict[str, bool] = {}
        self._parameters: dict[str, Any] = {}

    async def set(self, qmp: Qmp, *, late_activation: bool) -> None:
        """`late_activation`: images are locked by `cont`, not by the load, for the source holds them until it
        is gone."""
        wanted = {"x-ignore-shared": True, **dict.fromkeys(OTHER_WAYS, False)}
        if late_activation:
            wanted["late-block-activate"] = True
        listed = await qmp.execute("query-migrate-capabilities")
        now = {one["capability"]: bool(one["state"]) for one in listed}
        if "x-ignore-shared" not in now:
            raise PageferryError(
                Reason.UNSUPPORTED, "this QEMU has no capability x-ignore-shared", "use QEMU 7.2 or newer"
            )
        capabilities = {name: on for name, on in wanted.items() if now.get(name, on) != on}
        told = await qmp.execute("query-migrate-parameters")
        parameters = {name: value for name, value in PARAMETERS.items() if told.get(name, value) != value}
        self._capabilities = {name: now[name] for name in capabilities} | self._capabilities
        self._capabilities["x-ignore-shared"] = False
        self._parameters = {name: told[name] for name in parameters} | self._parameters
        await _apply(qmp, capabilities, parameters)

    async def give_back(self, qmp: Qmp) -> None:
        """A QEMU that is gone, or hangs, needs it no more."""
        capabilities, self._capabilities = self._capabilities, {}
        parameters, self._parameters = self._parameters, {}
        with suppress(PageferryError, TimeoutError):
            async with asyncio.timeout(GIVE_BACK_S):
                await _apply(qmp, capabilities, parameters)


async def _apply(qmp: Qmp, capabilities: Mapping[str, bool], parameters: Mapping[str, Any]) -> None:
    if capabilities:
        listed = [{"capability": name, "state": on} for name, on in capabilities.items()]
        await qmp.execute("migrate-set-capabilities", {"capabilities": listed})
    if parameters:
        await qmp.execute("migrate-set-parameters", parameters)

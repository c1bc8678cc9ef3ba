# SPDX-License-Identifier: Apache-2.0
"""The pair as a user starts it, `pageserver serve` and `faultclient run`, around a test's guest.

    with serve(folder, {"vm": image}) as server, client(folder, server.ready["data"]) as run:
        with Guest(shape, handoff=run.handoff, folder=folder) as guest:
            ...
            assert run.outcome()["asks_outstanding"] == 0

`launcher` is what runs in place of the console script; further options go to Process.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import Process, command, free_name


def serve(
    folder: Path,
    images: Mapping[str, Path],
    *options: str,
    listen: str = "127.0.0.1:0",
    launcher: Iterable[str] | None = None,
    **more: Any,
) -> Process:
    """`pageserver serve`, ready: `.ready` has its addresses."""
    arguments = [f"--image={name}={path}" for name, path in images.items()]
    arguments += [f"--data-listen={listen}", "--control-listen=127.0.0.1:0", *options]
    start = [*launcher] if launcher is not None else command("pageserver")
    return Process([*start, "serve", *arguments], folder=folder, ready=True, **more)


class Client(Process):
    """`faultclient run` for one guest; listening on `handoff` from its construction on."""

    def __init__(
        self,
        folder: Path,
        data_address: str,
        *options: str,
        image: str = "vm",
        launcher: Iterable[str] | None = None,
        **more: Any,
    ) -> None:
        reserved = free_name(folder, "handoff")
        reserved.touch()
        self.handoff = reserved.with_suffix(".sock")
        self._announced = reserved.with_suffix(".ready")
        start = [*launcher] if launcher is not None else command("faultclient")
        arguments = [f"--socket={self.handoff}", f"--data-address={data_address}", f"--image={image}"]
        arguments += ["--control-listen=127.0.0.1:0", f"--ready-file={self._announced}", "--json"]
        super().__init__([*start, "run", *arguments, *options], folder=folder, **more)
        self.wait_log("waiting")

    def control_address(self) -> str:
        """Of its control port, once that is there: the last thing to come up."""
        self.wait_until(self._announced.exists, "the ready file")
        return str(json.loads(self._announced.read_text())["control"])

    def outcome(self) -> dict[str, Any]:
        """The figures of the run, once it has ended by itself and well."""
        status = self.wait()
        assert status == 0, f"faultclient ended with {status}\n{self.log}"
        figures: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return figures


def client(folder: Path, data_address: str, *options: str, **more: Any) -> Client:
    return Client(folder, data_address, *options, **more)


def waiting_threads(pid: int) -> int:
    """Threads of a guest that wait for a page: the kernel says where each one sleeps."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum("userfault" in (task / "wchan").read_text() for task in tasks)

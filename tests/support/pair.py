# SPDX-License-Identifier: Apache-2.0
"""The pair as a user starts it, `pageserver serve` and `faultclient run`, around a test's guest.

with serve(folder, {"vm": image}) as server, client(folder, server.ready["data"]) as run:
    with Guest(shape, handoff=run.handoff, folder=folder) as guest:
        ...
        assert run.outcome()["asks_outstanding"] == 0
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
    launcher: Iterable[str] | None = None,
    listen: str = "127.0.0.1:0",
    env: Mapping[str, str] | None = None,
) -> Process:
    """`pageserver serve`, ready: `.ready` has its addresses. `launcher`: what runs in place of the script."""
    arguments = [f"--image={name}={path}" for name, path in images.items()]
    arguments += [f"--data-listen={listen}", "--control-listen=127.0.0.1:0", *options]
    start = [*launcher] if launcher is not None else command("pageserver")
    return Process([*start, "serve", *arguments], folder=folder, ready=True, env=env)


class Client(Process):
    """`faultclient run` for one guest; listening on `handoff` from its construction on."""

    def __init__(
        self,
        folder: Path,
        data_address: str,
        *options: str,
        image: str = "vm",
        launcher: Iterable[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.handoff = free_name(folder, "handoff").with_suffix(".sock")
        free_name(folder, "handoff").touch()
        start = [*launcher] if launcher is not None else command("faultclient")
        arguments = [f"--socket={self.handoff}", f"--data-address={data_address}"]
        arguments += [f"--image={image}"]
        arguments += ["--control-listen=127.0.0.1:0", "--json", *options]
        super().__init__([*start, "run", *arguments], folder=folder, env=env)
        self.wait_log("waiting")

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

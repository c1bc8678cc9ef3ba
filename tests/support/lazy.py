# SPDX-License-Identifier: Apache-2.0
"""A lazy restore of the real guest between two hosts: page server at the source, fault client and QEMU with
the shim at the destination, which has a network and a mount namespace of its own and cannot open the image.

    with host_pair(hide=[saved.image.parent]) as hosts, LazyRestore(saved, hosts, folder) as restore:
        restore.guest.load(saved.state)
        restore.guest.resume()
        figures = restore.client.outcome()
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import grpc

from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2
from tests.support.initrd import ROOT
from tests.support.netns import INTERFACE, HostPair
from tests.support.pair import Client, client, serve
from tests.support.processes import Process, command
from tests.support.qemu import Qemu
from tests.support.shape import SavedGuest
from tests.support.witness import allocated_bytes, interface_counters

SHIM: Final = ROOT / "native" / "build" / "pageferry-shim.so"
IMAGE: Final = "guest"


class LazyRestore:
    """Running from entering on: the guest's memory is handed over and served, its state is not loaded yet."""

    server: Process
    client: Client
    guest: Qemu

    def __init__(
        self, saved: SavedGuest, hosts: HostPair, folder: Path, *, client_options: Sequence[str] = ()
    ) -> None:
        self._saved = saved
        self._hosts = hosts
        self._folder = folder
        self._client_options = client_options
        self._stack = ExitStack()
        self.ram_file = folder / "restored.ram"
        self.blocks_at_start = -1
        self.started_ns = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder.mkdir(exist_ok=True)
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        source, destination = self._hosts.source, self._hosts.destination
        self.server = stack.enter_context(
            serve(
                self._folder,
                {IMAGE: self._saved.image},
                "--insecure-network",  # the namespaces are ours alone
                launcher=[*source.prefix, *command("pageserver")],
                listen=f"{source.address}:0",
            )
        )
        self.received_before = self.received_bytes()
        self.client = stack.enter_context(
            client(
                self._folder,
                self.server.ready["data"],
                f"--control-listen=unix:{self.control}",
                *self._client_options,
                image=IMAGE,
                launcher=[*destination.prefix, *command("faultclient")],
            )
        )
        with self.ram_file.open("wb") as ram:
            os.truncate(ram.fileno(), self._saved.shape.memory_mib << 20)
        stack.callback(self.ram_file.unlink)
        self.blocks_at_start = allocated_bytes(self.ram_file)
        self.started_ns = time.monotonic_ns()
        self.guest = stack.enter_context(
            Qemu(
                self._saved.shape,
                self.ram_file,
                self._folder / "qemu",
                restoring=self._saved,
                environment={
                    "LD_PRELOAD": str(SHIM),
                    "PAGEFERRY_SHIM_RAM": str(self.ram_file),
                    "PAGEFERRY_SHIM_SOCKET": str(self.client.handoff),
                },
                prefix=destination.prefix,
            )
        )
        # Before any state is fed: a shim that matched nothing is silent, and the guest would run on zeros.
        self.client.wait_log('"event": "handoff"')

    @property
    def control(self) -> Path:
        return self._folder / "control.sock"

    def session(self) -> migrations_pb2.Session:
        """What the fault client says of itself; its control port comes up behind its pager."""
        self.client.wait_until(self.control.exists, "the fault client's control port")
        with grpc.insecure_channel(f"unix:{self.control}") as channel:
            stub = faultclient_pb2_grpc.FaultClientServiceStub(channel)
            (session,) = stub.WatchSessions(migrations_pb2.WatchSessionsRequest(once=True), timeout=10)
        return session

    def received_bytes(self) -> int:
        """Into the destination, ever, by the kernel's counter of its interface."""
        return interface_counters(self._hosts.destination.pid, INTERFACE).rx_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

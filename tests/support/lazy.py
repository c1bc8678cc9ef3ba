# SPDX-License-Identifier: Apache-2.0
"""A lazy restore of the real guest between two hosts: page server at the source, fault client and QEMU with
the shim at the destination, which has a network and a mount namespace of its own and cannot open the image.
A guest with virtio-mem has two RAM files, and so two images and two fault clients.

    with host_pair(hide=[saved.image.parent]) as hosts, LazyRestore(saved, hosts, folder) as restore:
        restore.guest.load(saved.state)
        restore.guest.resume()
        figures = restore.client.outcome()
"""

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import grpc

from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2
from tests.support.initrd import ROOT
from tests.support.netns import INTERFACE, HostPair
from tests.support.pair import Client, client, serve
from tests.support.processes import Process, command
from tests.support.qemu import Qemu
from tests.support.shape import SavedGuest, plugged_file
from tests.support.witness import allocated_bytes, interface_counters

SHIM: Final = ROOT / "native" / "build" / "pageferry-shim.so"
IMAGE: Final = "guest"
PLUGGED_IMAGE: Final = "plugged"
QEMU_MEMFD: Final = "memfd:memory-backend-memfd"  # as QEMU names it


class LazyRestore:
    """Running from entering on: the guest's memory is handed over and served, its state is not loaded yet."""

    server: Process
    client: Client
    plugged_client: Client | None  # of virtio-mem's RAM file
    guest: Qemu

    def __init__(
        self,
        saved: SavedGuest,
        hosts: HostPair,
        folder: Path,
        *,
        client_options: Sequence[str] = (),
        guest_options: Sequence[str] = (),
        memory: Path | Literal["memfd"] | None = None,
    ) -> None:
        """`memory`: a folder for the RAM file, or a memfd instead of one; else it lies in `folder`."""
        self._saved = saved
        self._hosts = hosts
        self._folder = folder
        self._client_options = client_options
        self._guest_options = guest_options
        self._stack = ExitStack()
        self._memfd = memory == "memfd"
        self.ram_file = (folder if memory is None or memory == "memfd" else memory) / "restored.ram"
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
                self._images(),
                "--insecure-network",  # the namespaces are ours alone
                launcher=[*source.prefix, *command("pageserver")],
                listen=f"{source.address}:0",
            )
        )
        self.received_before = self.received_bytes()
        shape = self._saved.shape
        control = f"--control-listen=unix:{self.control}"
        self.client = self._client(stack, IMAGE, control, *self._client_options)
        self.plugged_client = None
        environment = {
            "LD_PRELOAD": str(SHIM),
            "PAGEFERRY_SHIM_RAM": QEMU_MEMFD if self._memfd else str(self.ram_file),
            "PAGEFERRY_SHIM_SOCKET": str(self.client.handoff),
        }
        self.blocks_at_start = 0
        if not self._memfd:
            _make_ram(stack, self.ram_file, shape.memory_mib)
            self.blocks_at_start = allocated_bytes(self.ram_file)
        if shape.plugged_mib:
            plugged = plugged_file(self.ram_file)
            control = f"--control-listen=unix:{self._folder / 'control-plugged.sock'}"
            self.plugged_client = self._client(stack, PLUGGED_IMAGE, control)
            environment["PAGEFERRY_SHIM_RAM_2"] = str(plugged)
            environment["PAGEFERRY_SHIM_SOCKET_2"] = str(self.plugged_client.handoff)
            _make_ram(stack, plugged, shape.pluggable_mib)
            self.blocks_at_start += allocated_bytes(plugged)
        self.started_ns = time.monotonic_ns()
        self.guest = stack.enter_context(
            Qemu(
                self._saved.shape,
                self.ram_file,
                self._folder / "qemu",
                restoring=self._saved,
                environment=environment,
                prefix=destination.prefix,
                extra=self._guest_options,
                memfd=self._memfd,
            )
        )
        # Before any state is fed: a shim that matched nothing is silent, and the guest would run on zeros.
        for run in filter(None, (self.client, self.plugged_client)):
            run.wait_log('"event": "handoff"')

    def _images(self) -> dict[str, Path]:
        images = {IMAGE: self._saved.image}
        if self._saved.plugged_image is not None:
            images[PLUGGED_IMAGE] = self._saved.plugged_image
        return images

    def _client(self, stack: ExitStack, image: str, *options: str) -> Client:
        launcher = [*self._hosts.destination.prefix, *command("faultclient")]
        address = self.server.ready["data"]
        return stack.enter_context(client(self._folder, address, *options, image=image, launcher=launcher))

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

    def outcome(self) -> dict[str, Any]:
        """The figures of the client, once it has ended by itself and well; with two, of both together. What
        is a time or a name is the first one's."""
        figures = self.client.outcome()
        if self.plugged_client is not None:
            for name, value in self.plugged_client.outcome().items():
                if type(value) is int:
                    figures[name] += value
        return figures

    def handoff_bytes(self) -> list[int]:
        """What has been said on the hand-off socket and not been read yet, an item a socket."""
        said = subprocess.run(
            [*self._hosts.destination.prefix, "ss", "--unix", "--no-header", "state", "established"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return [int(line.split()[1]) for line in said.splitlines() if str(self.client.handoff) in line]

    def received_bytes(self) -> int:
        """Into the destination, ever, by the kernel's counter of its interface."""
        return interface_counters(self._hosts.destination.pid, INTERFACE).rx_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _make_ram(stack: ExitStack, path: Path, mib: int) -> None:
    with path.open("wb") as ram:
        os.truncate(ram.fileno(), mib << 20)
    stack.callback(path.unlink)

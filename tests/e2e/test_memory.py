# SPDX-License-Identifier: Apache-2.0
"""What a restore of a large and mostly empty guest costs: 4 GiB of RAM, 64 MiB of them data, spread in runs.

The client is looked at when every page is the guest's and the kernel has let it go; its interpreter, with all
that it ever imports, is held still then, or it would end at once. The test itself plays the VMM, in a few
threads: pages are read through ctypes, without the GIL, for the proxy that they may wait for needs it.
"""

import ctypes
import fcntl
import os
import random
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
import pytest

from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2
from tests.support.gil import Holder
from tests.support.handoff_client import LIBC, PAGE_BYTES, Memory, Vmm
from tests.support.pair import serve
from tests.support.proxy import Proxy
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
MIB = 1 << 20
PAGES = (4 << 30) // PAGE_BYTES
DATA_PAGES = 64 * MIB // PAGE_BYTES
RUNS = 256
RUN_PAGES = DATA_PAGES // RUNS
HOLES_LOOKED_AT = 1000
VCPUS = 32
UFFDIO_UNREGISTER = 0x8010AA01
# Of the process, and for each page of the guest: 8 bytes.
CLIENT_BYTES = 96 * MIB + 8 * PAGES
SERVER_BYTES = 128 * MIB + 8 * PAGES
LIBC.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
LIBC.memcpy.restype = ctypes.c_void_p


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


# ---------------------------------------------------------------------------------------------- the image


def first_pages() -> list[int]:
    """Where the runs of data begin: one in each stretch of the image, somewhere in it."""
    dice = random.Random(64)
    stretch = PAGES // RUNS
    return [run * stretch + dice.randrange(1, stretch - RUN_PAGES) for run in range(RUNS)]


def data_pages() -> list[int]:
    return [first + page for first in first_pages() for page in range(RUN_PAGES)]


def page_bytes(page: int) -> bytes:
    return (page + 1).to_bytes(8, "little") * (PAGE_BYTES // 8)


def make_image(path: Path) -> Path:
    with path.open("wb") as image:
        image.truncate(PAGES * PAGE_BYTES)
        for first in first_pages():
            image.seek(first * PAGE_BYTES)
            image.write(b"".join(page_bytes(first + page) for page in range(RUN_PAGES)))
    return path


# ---------------------------------------------------------------------------------------- the guest's RAM


def read_page(memory: Memory, page: int) -> bytes:
    """As a vCPU reads it: faults if it must, and holds nobody else up."""
    copy = ctypes.create_string_buffer(PAGE_BYTES)
    LIBC.memcpy(copy, memory.address + page * PAGE_BYTES, PAGE_BYTES)
    return copy.raw


@contextmanager
def vcpus(memory: Memory) -> Iterator[ThreadPoolExecutor]:
    """Threads for read_page. However the test ends, none of them waits for a page for ever."""
    with ThreadPoolExecutor(VCPUS) as pool:
        try:
            yield pool
        finally:
            fcntl.ioctl(
                memory.uffd, UFFDIO_UNREGISTER, struct.pack("=2Q", memory.address, memory.length_bytes)
            )


def is_paged(memory: Memory) -> bool:
    """Whether a userfaultfd still stands before this memory: `um` and `ui` in its flags."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= memory.address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return not {"um", "ui"}.isdisjoint(line.split())
    raise LookupError("the guest's RAM is mapped nowhere")


# ------------------------------------------------------------------------------------------ the processes


@dataclass(frozen=True, slots=True)
class Cost:
    """What the kernel says that a process holds, in bytes."""

    anon: int  # its own: neither files nor shared memory
    shmem: int  # the page table among it
    pss: int
    peak: int  # of everything, files included

    @classmethod
    def of(cls, pid: int) -> Self:
        text = "".join(Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "smaps_rollup"))
        held = {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
        return cls(held["RssAnon"], held["RssShmem"], held["Pss"], held["VmHWM"])

    def told(self, who: str, limit: int) -> str:
        told = f"memory: {who} RssAnon {self.anon / MIB:.1f} MiB of {limit / MIB:.0f}"
        return (
            f"{told}, RssShmem {self.shmem / MIB:.1f}, Pss {self.pss / MIB:.1f}, peak {self.peak / MIB:.1f}"
        )


def ask_status(control: str) -> migrations_pb2.Session:
    with grpc.insecure_channel(control) as channel:
        stub = faultclient_pb2_grpc.FaultClientServiceStub(channel)
        (session,) = stub.WatchSessions(migrations_pb2.WatchSessionsRequest(once=True), timeout=10)
    return session


def test_four_gib_with_64_mib_of_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_image(folder / "image")
    with (
        Holder.made() as holder,
        serve(folder, {"vm": image}) as server,
        Proxy(server.ready["data"]) as proxy,
        Memory(PAGES) as memory,
        vcpus(memory) as pool,
    ):
        proxy.allow(4 * MIB)
        with holder.client(folder, proxy.address) as run, Vmm(run.handoff) as vmm:
            vmm.send(memory.layout(), fds=memory.fds)
            assert ask_status(run.control_address()).pages_total == PAGES
            proxy.wait_dry()
            reads = [pool.submit(read_page, memory, first + RUN_PAGES // 2) for first in first_pages()]
            with holder.holding():
                proxy.release()
                run.wait_until(lambda: not is_paged(memory), "all pages are the guest's")
                client_cost, server_cost = Cost.of(run.pid), Cost.of(server.pid)
                stored = os.fstat(memory.file).st_blocks * 512
            figures = run.outcome()
        for first, read in zip(first_pages(), reads, strict=True):
            assert read.result() == page_bytes(first + RUN_PAGES // 2)
        for page in data_pages():
            assert read_page(memory, page) == page_bytes(page)
        holes = sorted(set(range(PAGES)).difference(data_pages()))
        for page in random.Random(4).sample(holes, HOLES_LOOKED_AT):
            assert read_page(memory, page) == bytes(PAGE_BYTES)
    with capsys.disabled():
        print()
        print(client_cost.told("client", CLIENT_BYTES))
        print(server_cost.told("server", SERVER_BYTES))
        wire = figures["wire_in_bytes_total"] / MIB
        print(f"memory: the guest's RAM holds {stored / MIB:.1f} MiB, {wire:.1f} MiB came over the wire")
    assert client_cost.anon <= CLIENT_BYTES
    assert server_cost.anon <= SERVER_BYTES
    assert stored == DATA_PAGES * PAGE_BYTES  # what reads as zeros costs nothing
    assert figures["fetched_bytes_total"] <= 65 * MIB  # a page that bulk and a fault both bring comes twice
    assert figures["bulk_pages_total"] + figures["urgent_pages_total"] >= DATA_PAGES
    assert figures["wire_in_bytes_total"] <= 70 * MIB
    assert figures["faults_total"] > 0
    assert figures["alarms_total"] == 0
    assert figures["phase"] == "RELEASED"

# SPDX-License-Identifier: Apache-2.0
"""A bit that flips on the wire is found by the digest and never reaches the guest, who would have seen it.

That the last half is true is shown, not assumed: with the digest unchecked the guest finds the bit, and so it
does when the image itself is damaged, which no digest on the wire can know.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cffi import FFI

from native.ext import HEADER, LIBRARY, NATIVE, declarations, make
from tests.support.build import FLAGS, ROOT
from tests.support.guest import PAGE_BYTES, Guest, Shape
from tests.support.pair import client, serve
from tests.support.processes import Process
from tests.support.proxy import Proxy
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
SHAPE = Shape((2048,), seed=30)
THE_CHECK = "payload_digest(content_id, batch->runs, batch->run_count, batch->data) != batch->digest"
NEVER = "content_id == 0"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    return SHAPE.make_image(folder / "image")


@pytest.fixture(scope="module")
def server(folder: Path, image: Path) -> Iterator[Process]:
    with serve(folder, {"vm": image}) as running:
        yield running


@pytest.fixture
def proxy(server: Process) -> Iterator[Proxy]:
    with Proxy(server.ready["data"]) as running:
        yield running


@pytest.mark.parametrize("memory", ["memfd", "private"])
@pytest.mark.parametrize("background", ["--background", "--no-background"])
@pytest.mark.parametrize("flips", [1, 20], ids=["one", "many in a row"])
def test_flipped_on_the_wire(
    proxy: Proxy, folder: Path, image: Path, flips: int, background: str, memory: str
) -> None:
    proxy.flip_pages(flips)
    with (
        client(folder, proxy.address, background) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory) as guest,
    ):
        report = guest.ready().do("all")
        figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert proxy.counts.flips == flips
    assert 1 <= figures["digest_failures_total"] <= flips
    if flips == 1 and background == "--no-background":
        assert figures["links_lost_total"] == 0  # nothing but bytes of pages was touched
    # bytes of a batch that failed are not counted as fetched, and its pages came once more
    assert proxy.counts.page_bytes > len(SHAPE.data_pages(image)) * PAGE_BYTES


def test_with_the_digest_unchecked_the_guest_finds_it(proxy: Proxy, folder: Path) -> None:
    proxy.flip_pages(1)
    env = {"PYTHONPATH": str(without_digest_check(folder))}
    with (
        client(folder, proxy.address, "--no-background", env=env) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        report = guest.ready().do("all")
        figures = run.outcome()
    assert proxy.counts.flips == 1
    assert figures["digest_failures_total"] == 0
    assert report.kinds == {"damaged": 1}


def test_flipped_in_the_image_the_guest_finds_it(folder: Path, image: Path) -> None:
    damaged = folder / "damaged"
    shutil.copy(image, damaged)
    page = SHAPE.data_pages(image)[SHAPE.seed]
    with damaged.open("r+b") as file:
        file.seek(page * PAGE_BYTES + 1234)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x10]))
    with (
        serve(folder, {"vm": damaged}) as server,
        client(folder, server.ready["data"]) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        report = guest.ready().do("all")
        figures = run.outcome()
        assert guest.wrong_pages == [(page, "damaged")]
    assert report.errors == 1
    assert figures["digest_failures_total"] == 0


def without_digest_check(folder: Path) -> Path:
    """A folder for PYTHONPATH: pageferry as it is, but for a C library that does not compare digests."""
    source = (NATIVE / "rpc/payload.c").read_text()
    assert source.count(THE_CHECK) == 1
    changed = folder / "payload.c"
    changed.write_text(source.replace(THE_CHECK, NEVER).replace('#include "', f'#include "{NATIVE}/rpc/'))
    subprocess.run(["gcc", *FLAGS, "-fPIC", "-c", changed, "-o", folder / "payload.o"], check=True)
    ffi = FFI()
    ffi.cdef(declarations(HEADER.read_text()))
    ffi.set_source(
        "pageferry._native",
        '#include "pageferry.h"',
        include_dirs=[str(NATIVE)],
        # the first to define a function wins: the library's own payload.o is not taken out of it
        extra_objects=[str(folder / "payload.o"), str(LIBRARY)],
        extra_link_args=make("--eval=libs: ; @echo $(LIBS)", "libs").split(),
    )
    overlay = folder / "overlay"
    built = Path(ffi.compile(tmpdir=str(overlay), verbose=False))
    for path in (ROOT / "pageferry").iterdir():
        if not path.name.startswith(("_native", "__pycache__")):
            (built.parent / path.name).symlink_to(path)
    return overlay

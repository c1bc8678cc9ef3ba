# SPDX-License-Identifier: Apache-2.0
"""The shim, the small VMM and a RAM file for it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.vmm import PAGE_BYTES, PAGES, Starter, Vmm
from tests.support.requires import has_userfaultfd_right

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _right() -> None:
    if not has_userfaultfd_right():
        pytest.skip("no userfaultfd right: run as root, or set vm.unprivileged_userfaultfd=1")


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder with the shim and the small VMM that every user can read."""
    make = ["make", "--silent", "--no-print-directory", "-C", "native", "shim"]
    subprocess.run(make, cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory(prefix="pageferry-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(ROOT / "native/build/pageferry-shim.so", folder / "shim.so")
        source = Path(__file__).with_name("small_vmm.c")
        flags = ["-std=gnu17", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-O1"]
        subprocess.run(["gcc", *flags, source, "-o", folder / "small_vmm"], check=True)
        yield folder


@pytest.fixture
def ram() -> Iterator[Path]:
    """A RAM file on tmpfs, all holes."""
    path = Path(f"/dev/shm/pageferry-test-{os.getpid()}.ram")
    path.touch()
    os.truncate(path, PAGES * PAGE_BYTES)
    yield path
    path.unlink()


@pytest.fixture
def start(programs: Path, ram: Path, tmp_path: Path) -> Starter:
    """Starts the VMM on the RAM file: start(*steps), start(memory=..., settings=...)."""

    @contextmanager
    def started(
        *steps: str,
        memory: tuple[str, ...] = (),
        settings: dict[str, str] | None = None,
        user: int | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> Iterator[Vmm]:
        chosen = {"PAGEFERRY_SHIM_RAM": str(ram), "PAGEFERRY_SHIM_SOCKET": str(tmp_path / "uffd.sock")}
        chosen |= settings or {}
        given = {name: value for name, value in chosen.items() if value}
        process = subprocess.Popen(
            [programs / "small_vmm", *(memory or ("file", str(ram))), *steps],
            env={"LD_PRELOAD": str(programs / "shim.so")} | given,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=user,
            pass_fds=pass_fds,
        )
        try:
            yield Vmm(process)
        finally:
            process.kill()
            process.communicate()

    return started

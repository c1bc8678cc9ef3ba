# SPDX-License-Identifier: Apache-2.0
"""The real guest's kernel and initrd, made once and kept under build/guest/.

The kernel is Debian's own: the image package that linux-image-cloud-amd64 depends on, fetched by apt and
unpacked without installing it. The initrd is made here: busybox, an /init of a few lines, and the workload;
one for guests with a balloon or pluggable memory has that kernel's drivers of them as well. Its name carries
a hash of all that went into it, so a change of any part makes a new one. `python -m tests.support.initrd`
makes both and prints where they are.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "guest"
WORKLOAD = Path(__file__).with_name("workload.c")
KERNEL_PACKAGE = "linux-image-cloud-amd64"
COMPILE = ["gcc", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-O2", "-fno-tree-vectorize", "-static"]

INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev
exec /workload
"""
# Each after those that it needs. What is plugged in at the start is there when the workload begins: wl.kib is
# what the kernel must have by then.
DRIVERS = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("virtio_balloon", "virtio_mem"),
)
INIT_WITH_DRIVERS = f"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev
for driver in {" ".join(DRIVERS)}; do /bin/busybox insmod /$driver.ko; done
wanted=$(/bin/busybox sed -n 's/.*wl.kib=\\([0-9]*\\).*/\\1/p' /proc/cmdline)
until [ $(/bin/busybox sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) -ge ${{wanted:-0}} ]; do
    /bin/busybox usleep 20000
done
exec /workload
""".encode()


class GuestImageError(Exception):
    """The guest cannot be made here; the text says what is missing and how to get it."""


@dataclass(frozen=True)
class GuestImage:
    kernel: Path
    initrd: Path


def guest_image(*, drivers: bool = False) -> GuestImage:
    """The kernel and the initrd, one with virtio's drivers or without; makes what is not there yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _alone(FOLDER):
        return GuestImage(kernel=_kernel(drivers), initrd=_initrd(drivers))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.rename(path)
    return path


# -- the kernel ----------------------------------------------------------------------------------------------


def _driver(name: str) -> Path:
    return FOLDER / f"{name}.ko"


def _kernel(drivers: bool) -> Path:
    kernel = FOLDER / "vmlinuz"
    if kernel.exists() and not (drivers and any(not _driver(name).exists() for name in DRIVERS)):
        return kernel
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise GuestImageError(
            f"the guest's kernel is Debian's package {KERNEL_PACKAGE}, and {', '.join(missing)} is not here:"
            f" put a kernel with 8250 console and initramfs built in at {kernel}"
        )
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        try:
            found = _fetch_kernel(Path(folder))
        except GuestImageError:
            _refresh_package_lists()
            found = _fetch_kernel(Path(folder))
        for name in DRIVERS:  # of this kernel and no other
            _replace(_driver(name), _one(Path(folder), f"lib/modules/*/kernel/drivers/virtio/{name}.ko"))
        return _replace(kernel, found.read_bytes())


def _fetch_kernel(folder: Path) -> Path:
    """Downloads the package that the kernel's name stands for, and unpacks it in `folder`."""
    depends = _run(["apt-cache", "depends", KERNEL_PACKAGE], folder)
    names = re.findall(r"Depends: (linux-image-[0-9]\S+)", depends)
    if not names:
        raise GuestImageError(f"apt knows no package behind {KERNEL_PACKAGE}: is this a Debian 12 system?")
    _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", names[0]], folder)
    for package in folder.glob("linux-image-*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(folder)], folder)
    found = sorted(folder.glob("boot/vmlinuz-*"))
    if not found:
        raise GuestImageError(f"package {names[0]} holds no boot/vmlinuz-*")
    return found[-1]


def _one(folder: Path, pattern: str) -> bytes:
    found = sorted(folder.glob(pattern))
    if not found:
        raise GuestImageError(f"the kernel's package holds no {pattern}")
    return found[-1].read_bytes()


def _refresh_package_lists() -> None:
    if os.geteuid() != 0:
        raise GuestImageError(f"package {KERNEL_PACKAGE} cannot be fetched: run `apt-get update` as root")
    _run(["apt-get", "-q", "update"], FOLDER)


def _run(argv: list[str], folder: Path) -> str:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise GuestImageError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


# -- the initrd ----------------------------------------------------------------------------------------------


def _initrd(drivers: bool) -> Path:
    busybox = _busybox()
    modules = {name: _driver(name).read_bytes() for name in DRIVERS} if drivers else {}
    kind = "drivers" if drivers else "initrd"
    key = hashlib.sha256()
    for part in (busybox, WORKLOAD.read_bytes(), Path(__file__).read_bytes(), *modules.values()):
        key.update(len(part).to_bytes(8, "little") + part)
    initrd = FOLDER / f"{kind}-{key.hexdigest()[:16]}.cpio"
    if initrd.exists():
        return initrd
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        workload = Path(folder) / "workload"
        if shutil.which(COMPILE[0]) is None:
            raise GuestImageError("the guest's workload needs a compiler: install packages gcc and libc6-dev")
        _run([*COMPILE, "-o", str(workload), str(WORKLOAD)], Path(folder))
        for old in FOLDER.glob(f"{kind}-*.cpio"):
            old.unlink()
        return _replace(initrd, _archive(busybox, workload.read_bytes(), modules))


def _busybox() -> bytes:
    path = shutil.which("busybox")
    content = Path(path).read_bytes() if path else b""
    if not content or b"ld-linux" in content[:4096]:  # a dynamic program names its loader near its start
        raise GuestImageError("the guest's /init needs a static busybox: install the package busybox-static")
    return content


def _archive(busybox: bytes, workload: bytes, modules: Mapping[str, bytes]) -> bytes:
    """A cpio archive in the kernel's format "newc", not compressed: unpacking is slow in an emulated
    guest.
    """
    entries: list[tuple[str, int, bytes, tuple[int, int]]] = [
        ("dev", 0o040755, b"", (0, 0)),
        ("proc", 0o040755, b"", (0, 0)),
        ("bin", 0o040755, b"", (0, 0)),
        ("dev/console", 0o020600, b"", (5, 1)),
        ("bin/busybox", 0o100755, busybox, (0, 0)),
        ("init", 0o100755, INIT_WITH_DRIVERS if modules else INIT, (0, 0)),
        ("workload", 0o100755, workload, (0, 0)),
        *((f"{name}.ko", 0o100644, content, (0, 0)) for name, content in modules.items()),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]
    archive = bytearray()
    for inode, (name, mode, content, device) in enumerate(entries, start=1):
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


if __name__ == "__main__":
    made = guest_image()
    print(made.kernel, made.initrd, sep="\n")

# SPDX-License-Identifier: Apache-2.0
"""What a test needs of the machine. A test without it skips, as tests/allowed_skips.txt allows."""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import pytest

USERFAULTFD = {"x86_64": 323, "aarch64": 282}


@cache
def has_userfaultfd_right() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(USERFAULTFD[platform.machine()], os.O_CLOEXEC | os.O_NONBLOCK))
    if fd >= 0:
        os.close(fd)
    return fd >= 0


needs_userfaultfd = pytest.mark.skipif(
    not has_userfaultfd_right(),
    reason="no userfaultfd right: run as root, or set vm.unprivileged_userfaultfd=1",
)

needs_huge_pages = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/mm/hugepages/hugepages-2048kB").exists(),
    reason="needs root and a kernel with huge pages of 2 MiB: for a pool of them",
)

needs_huge_settings = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists(),
    reason="needs root and a kernel with transparent huge pages: to set them",
)

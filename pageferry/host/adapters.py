# SPDX-License-Identifier: Apache-2.0
"""From what an operator has named to the adapter that speaks to it."""

from pageferry.host.adapter_socket import SocketVmm
from pageferry.host.process import ProcessVmm
from pageferry.host.qemu import QemuVmm
from pageferry.host.vmm import Vmm
from pageferry.host.vmspec import VmKind, VmSpec


def adapter(spec: VmSpec, *, pidfd: int) -> Vmm:
    """Not connected yet: attach() does that. `pidfd`: of the process that handed its memory over, -1 if it is
    in another PID namespace; the adapter keeps a copy, the caller's stays the caller's."""
    if spec.kind is VmKind.PROCESS:
        return ProcessVmm(pidfd)
    assert spec.control is not None
    if spec.kind is VmKind.QEMU:
        return QemuVmm(spec.control, pidfd=pidfd)
    return SocketVmm(spec.control, pidfd=pidfd)

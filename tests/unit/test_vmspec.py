# SPDX-License-Identifier: Apache-2.0
"""A VM on the command line: what is meant, and what is refused with which sentence."""

import os
from pathlib import Path

import pytest

from pageferry.host.adapter_socket import SocketVmm
from pageferry.host.adapters import adapter
from pageferry.host.process import ProcessVmm
from pageferry.host.qemu import QemuVmm
from pageferry.host.vmspec import VmKind, VmSpec, check_apart, parse_vm
from pageferry.reasons import PageferryError, Reason


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (
            "web-1,handoff=/run/h,qemu=/run/q",
            VmSpec("web-1", Path("/run/h"), VmKind.QEMU, Path("/run/q")),
        ),
        ("a b,qemu=q=1,handoff=h", VmSpec("a b", Path("h"), VmKind.QEMU, Path("q=1"))),
        ("vm,handoff=/h,socket=/s", VmSpec("vm", Path("/h"), VmKind.SOCKET, Path("/s"))),
        ("vm,handoff=/h,process", VmSpec("vm", Path("/h"), VmKind.PROCESS)),
        ("vm,process,handoff=/h", VmSpec("vm", Path("/h"), VmKind.PROCESS)),
    ],
)
def test_what_is_meant(text: str, meant: VmSpec) -> None:
    assert parse_vm(text) == meant


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a VM's name has 1 to 128 bytes"),
        ("handoff=/h,process", "and no ="),
        ("x" * 129 + ",handoff=/h,process", "1 to 128 bytes"),
        ("a\nb,handoff=/h,process", "all of them printable"),
        ("vm", "it names no hand-off socket"),
        ("vm,process", "it names no hand-off socket"),
        ("vm,handoff=/h", "one of qemu=, socket= and process"),
        ("vm,handoff=/h,process,qemu=/q", "one of qemu=, socket= and process"),
        ("vm,handoff=/h,handoff=/i,process", "handoff is there twice"),
        ("vm,handoff=/h,process=1", "process takes no value"),
        ("vm,handoff,process", "handoff has no value"),
        ("vm,handoff=,process", "1 to 107 bytes"),
        ("vm,handoff=/h,qemu=" + "q" * 108, "1 to 107 bytes"),
        ("vm,handoff=/h,xen=/x", "'xen=/x' is nothing that a VM has"),
        ("vm,handoff=/h,qemu=/q,", "'' is nothing that a VM has"),
        ("vm,handoff=/h,qemu=/h", "the hand-off socket is one of its own"),
    ],
)
def test_what_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(PageferryError) as caught:
        parse_vm(text)
    assert caught.value.reason is Reason.BAD_REQUEST
    assert sentence in caught.value.message
    assert "NAME,handoff=SOCKET,qemu=" in caught.value.remedy


def test_a_vm_that_is_to_move_on() -> None:
    """A fault client is told so; a page server hands nothing on."""
    text = "vm,handoff=/h,qemu=/q,onward=/o"
    assert parse_vm(text, onward=True) == VmSpec("vm", Path("/h"), VmKind.QEMU, Path("/q"), Path("/o"))
    assert parse_vm("vm,handoff=/h,process,onward=/o", onward=True).onward == Path("/o")
    with pytest.raises(PageferryError, match="'onward=/o' is nothing that a VM has"):
        parse_vm(text)
    for one in ("/h", "/q"):
        with pytest.raises(PageferryError, match="the hand-off socket is one of its own"):
            parse_vm(f"vm,handoff=/h,qemu=/q,onward={one}", onward=True)
    with pytest.raises(PageferryError, match="two VMs have /o"):
        check_apart([parse_vm(f"{name},handoff=/{name},process,onward=/o", onward=True) for name in "ab"])


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ("a,handoff=/h2,process", "two VMs have a"),
        ("b,handoff=/h,process", "two VMs have /h"),
        ("b,handoff=/q,process", "two VMs have /q"),
    ],
)
def test_two_vms_share_nothing(other: str, what: str) -> None:
    one = parse_vm("a,handoff=/h,qemu=/q")
    check_apart([one, parse_vm("b,handoff=/h2,process")])
    with pytest.raises(PageferryError, match=what):
        check_apart([one, parse_vm(other)])


def test_each_kind_has_its_adapter() -> None:
    held = os.pidfd_open(os.getpid())
    try:
        assert isinstance(adapter(parse_vm("a,handoff=/h,qemu=/q"), pidfd=-1), QemuVmm)
        assert isinstance(adapter(parse_vm("a,handoff=/h,socket=/q"), pidfd=-1), SocketVmm)
        assert isinstance(adapter(parse_vm("a,handoff=/h,process"), pidfd=held), ProcessVmm)
        with pytest.raises(PageferryError, match="another PID namespace"):
            adapter(parse_vm("a,handoff=/h,process"), pidfd=-1)
    finally:
        os.close(held)

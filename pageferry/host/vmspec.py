# SPDX-License-Identifier: Apache-2.0
"""How an operator names a VM, the same at both ends: its name, its hand-off socket, and who can stop it.

NAME,handoff=SOCKET,qemu=QMP_SOCKET
NAME,handoff=SOCKET,socket=ADAPTER_SOCKET
NAME,handoff=SOCKET,process

Where nobody else says it, an operator may say where the memory lies in the guest, so that pages can be named
by guest address: layout=ADDRESS:SIZE+ADDRESS:SIZE, in image order.

A fault client may be told beside it to whom the VM is handed on once it runs here: onward=SOCKET, the
hand-off socket that this host's page server has for it (docs/chain.md).
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from pageferry.layout import Layout, parse_layout
from pageferry.names import IMAGE_NAME_RULE, is_image_name
from pageferry.reasons import PageferryError, Reason

LAYOUT_KEY: Final = "layout"
FORM: Final = "NAME,handoff=SOCKET,qemu=QMP_SOCKET|socket=ADAPTER_SOCKET|process[,layout=ADDRESS:SIZE+...]"
ONWARD_KEY: Final = "onward"
ONWARD_FORM: Final = f"{FORM}[,{ONWARD_KEY}=SOCKET]"
# sockaddr_un
SOCKET_PATH_BYTES_MAX: Final = 107


class VmKind(Enum):
    """By whom it is stopped, saved, loaded and resumed. The value is the word on the command line."""

    QEMU = "qemu"  # over its QMP socket
    SOCKET = "socket"  # an orchestrator that owns the VMM: docs/adapters.md
    PROCESS = "process"  # a process without any device state: by signals


@dataclass(frozen=True, slots=True)
class VmSpec:
    name: str
    handoff: Path
    kind: VmKind
    control: Path | None = None  # the QMP socket, or the orchestrator's; None for a process
    onward: Path | None = None  # of the page server that it moves on from; None: it does not
    layout: Layout | None = None  # of its memory in the guest, if an operator has said it


def parse_vm(text: str, *, onward: bool = False) -> VmSpec:
    """`onward`: it may be handed on. PageferryError: what is wrong with it."""
    name, *parts = text.split(",")
    _check_name(name, text)
    given: dict[str, str] = {}
    known = {"handoff", LAYOUT_KEY, *(kind.value for kind in VmKind), *((ONWARD_KEY,) if onward else ())}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in known:
            raise refused(text, f"{part!r} is nothing that a VM has")
        if key in given:
            raise refused(text, f"{key} is there twice")
        if (key == VmKind.PROCESS.value) == bool(equals):
            raise refused(text, f"{key} takes no value" if equals else f"{key} has no value")
        given[key] = value
    if "handoff" not in given:
        raise refused(text, "it names no hand-off socket")
    kinds = [kind for kind in VmKind if kind.value in given]
    if len(kinds) != 1:
        raise refused(text, "it names one of qemu=, socket= and process, no more and no less")
    (kind,) = kinds
    control = None if kind is VmKind.PROCESS else _path(given[kind.value], text)
    to = _path(given[ONWARD_KEY], text) if ONWARD_KEY in given else None
    layout = parse_layout(given[LAYOUT_KEY]) if LAYOUT_KEY in given else None
    spec = VmSpec(name, _path(given["handoff"], text), kind, control, to, layout)
    if spec.handoff in (spec.control, spec.onward) or (to is not None and to == spec.control):
        raise refused(text, "the hand-off socket is one of its own")
    return spec


def check_apart(specs: "list[VmSpec] | tuple[VmSpec, ...]") -> None:
    """Several VMs of one process: no name and no socket is there twice. PageferryError."""
    seen: set[object] = set()
    for spec in specs:
        for what in (spec.name, spec.handoff, spec.control, spec.onward):
            if what is not None and what in seen:
                raise PageferryError(
                    Reason.BAD_REQUEST, f"two VMs have {what}", "give each a name and sockets of its own"
                )
            seen.add(what)


def _check_name(name: str, text: str) -> None:
    """It is an image's name at the page server."""
    if not is_image_name(name) or "=" in name:
        raise refused(text, f"a VM's name has {IMAGE_NAME_RULE}, and no =")


def _path(value: str, text: str) -> Path:
    if not value or len(value.encode(errors="surrogateescape")) > SOCKET_PATH_BYTES_MAX or "\0" in value:
        raise refused(text, f"a socket's path has 1 to {SOCKET_PATH_BYTES_MAX} bytes")
    return Path(value)


def refused(text: str, what: str) -> PageferryError:
    return PageferryError(Reason.BAD_REQUEST, f"{text!r} names no VM: {what}", f"write {FORM}")

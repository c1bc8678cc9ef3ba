# SPDX-License-Identifier: Apache-2.0
"""Every refusal of a QEMU that cannot be moved, with answers as QEMU gives them. What the real one can show,
tests/e2e/test_adapter_qemu.py makes it show.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import pytest

from pageferry.host import qemu_checks as checks
from pageferry.host.qmp import Qmp, QmpRefusalError
from pageferry.reasons import PageferryError, Reason

OLD, NEW = (7, 2, 22), (8, 2, 0)
GIB = 1 << 30
RAM = {"id": "ram0", "size": GIB, "share": True, "prealloc": False, "merge": True}
OBJECTS = [{"name": "type", "type": "string"}, {"name": "ram0", "type": "child<memory-backend-file>"}]
SIZES = {"base-memory": GIB, "plugged-memory": 0}
CACHE = {"direct": False, "writeback": True, "no-flush": False}
NODE = {"node-name": "#block1", "drv": "file", "file": "/disk", "cache": CACHE}


class Answers:
    """A monitor that knows these answers; of qom-list those by path."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, **_: Any) -> Any:
        key = f"{command} {arguments['path']}" if command == "qom-list" and arguments else command
        return self._answers[key]


def ask(check: Callable[[Qmp], Awaitable[Any]], answers: Mapping[str, Any]) -> Any:
    async def run() -> Any:
        return await check(cast(Qmp, Answers(answers)))

    return asyncio.run(run())


def refusal(check: Callable[[Qmp], Awaitable[Any]], answers: Mapping[str, Any]) -> PageferryError:
    with pytest.raises(PageferryError) as caught:
        ask(check, answers)
    assert caught.value.reason is Reason.UNSUPPORTED
    assert caught.value.remedy
    return caught.value


# ------------------------------------------------------------------------------------ below and above 4 GiB

# As `info mtree -f` of QEMU 7.2 and 10.0 has them: what lies below 4 GiB of so much.
PIECES = [
    ("pc-i440fx-7.2", 0xE000_0000, 3 * GIB, 3 * GIB),
    ("pc-i440fx-7.2", 0xE000_0000, 0xE000_0000, 3 * GIB),
    ("pc-i440fx-7.2", 0xE000_0000, 6 * GIB, 3 * GIB),
    ("pc-i440fx-7.2", GIB, 6 * GIB, GIB),
    ("pc-q35-10.0", 4 * GIB, 2 * GIB, 2 * GIB),
    ("pc-q35-10.0", 4 * GIB, 0xB000_0000, 2 * GIB),
    ("pc-q35-10.0", 4 * GIB, 6 * GIB, 2 * GIB),
    ("pc-q35-10.0", GIB, 6 * GIB, GIB),
    ("microvm", None, 3 * GIB, 3 * GIB),
    ("microvm", None, 4 * GIB, 3 * GIB),
]


class Limited:
    """A monitor that knows one property, or has none."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, **_: Any) -> Any:
        if self._limit is None:
            raise QmpRefusalError("qom-get", "Property not found")
        return self._limit


@pytest.mark.parametrize(("machine", "limit", "memory_bytes", "below"), PIECES)
def test_what_lies_below_4_gib(machine: str, limit: int | None, memory_bytes: int, below: int) -> None:
    found = asyncio.run(checks.below_4g_bytes(cast(Qmp, Limited(limit)), machine, memory_bytes))
    assert min(found, memory_bytes) == below


def test_a_machine_whose_rule_nobody_knows() -> None:
    assert asyncio.run(checks.below_4g_bytes(cast(Qmp, Limited(GIB)), "virt-10.0", 6 * GIB)) == 0


# ---------------------------------------------------------------------------------------- the machine type

MACHINES = [
    {"name": "pc-i440fx-10.0", "alias": "pc", "is-default": True},
    {"name": "pc-q35-10.0", "alias": "q35"},
    {"name": "pc-i440fx-7.2"},
    {"name": "microvm"},
]


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("qemu -machine pc -m 1", "pc"),
        ("qemu --machine pc,accel=kvm", "pc"),
        ("qemu -M q35", "q35"),
        ("qemu -machine accel=kvm,type=q35", "q35"),
        ("qemu -machine accel=kvm", None),
        ("qemu -machine memory-backend=ram0 -machine type=pc", "pc"),
        ("qemu -machine pc -machine pc-i440fx-7.2,memory-backend=ram0", "pc-i440fx-7.2"),
        ("qemu -m 1 -name machine pc", None),
        ("qemu -machine", None),
        ("qemu", None),
    ],
)
def test_which_machine_type_a_command_line_names(line: str, given: str | None) -> None:
    assert checks.machine_given(line.split()) == given


@pytest.mark.parametrize(
    ("line", "kind", "sentence"),
    [
        ("qemu -M pc", "pc-i440fx-10.0-machine", "the machine type pc, an alias"),
        ("qemu -machine q35,accel=tcg", "pc-q35-10.0-machine", "the machine type q35, an alias"),
        ("qemu -m 64", "pc-i440fx-10.0-machine", "without a machine type"),
    ],
)
def test_an_alias_is_refused(line: str, kind: str, sentence: str) -> None:
    answers = {"qom-get": kind, "query-machines": MACHINES}
    error = refusal(lambda qmp: checks.machine_type(qmp, line.split(), []), answers)
    assert sentence in error.message
    assert f"-machine {kind.removesuffix('-machine')}," in error.remedy


@pytest.mark.parametrize(
    ("line", "kind", "warning"),
    [
        (["qemu", "-machine", "pc-i440fx-7.2"], "pc-i440fx-7.2-machine", None),
        (["qemu", "-M", "microvm"], "microvm-machine", "has no version"),
        (None, "pc-i440fx-10.0-machine", "could not be looked at"),
    ],
)
def test_a_name_is_taken(line: list[str] | None, kind: str, warning: str | None) -> None:
    warnings: list[str] = []
    answers = {"qom-get": kind, "query-machines": MACHINES}
    name = ask(lambda qmp: checks.machine_type(qmp, line, warnings), answers)
    assert name == kind.removesuffix("-machine")
    assert [warning is not None and warning in text for text in warnings] == ([True] if warning else [])


# ---------------------------------------------------------------------------------------------- the memory


def memory(*backends: Mapping[str, Any], kind: str = "memory-backend-file", **sizes: int) -> dict[str, Any]:
    objects = [{"name": "ram0", "type": f"child<{kind}>"}, {"name": "ram1", "type": f"child<{kind}>"}]
    return {
        "query-memdev": backends,
        "qom-list /objects": objects,
        "query-memory-size-summary": SIZES | {name.replace("_", "-"): size for name, size in sizes.items()},
    }


def test_one_shared_file_is_right() -> None:
    assert ask(lambda qmp: checks.memory_bytes(qmp, NEW), memory(RAM)) == GIB
    memfd = memory(RAM, kind="memory-backend-memfd")
    assert ask(lambda qmp: checks.memory_bytes(qmp, OLD), memfd) == GIB
    assert ask(lambda qmp: checks.memory_bytes(qmp, (8, 1, 5)), memfd) == GIB


@pytest.mark.parametrize(
    ("answers", "version", "sentence", "remedy"),
    [
        (memory(RAM | {"share": False}), OLD, "ram0 (memory-backend-file) is private", "share=on"),
        (memory(RAM | {"prealloc": True}), OLD, "prealloc=on", "prealloc=off"),
        (memory(RAM, kind="memory-backend-memfd"), NEW, "is a memory-backend-memfd", "a named file"),
        (memory(RAM, kind="memory-backend-shm"), NEW, "is a memory-backend-shm", "a named file"),
        (memory(), NEW, "(there are: none)", "memory-backend=ram0"),
        (
            memory(RAM, RAM | {"id": "ram1"}, base_memory=2 * GIB),
            NEW,
            "not in one memory backend",
            "no DIMMs",
        ),
        (memory(RAM, plugged_memory=GIB), NEW, f"{2 * GIB} bytes is not in one", "no DIMMs"),
    ],
)
def test_other_memory_is_refused(
    answers: dict[str, Any], version: tuple[int, ...], sentence: str, remedy: str
) -> None:
    error = refusal(lambda qmp: checks.memory_bytes(qmp, version), answers)
    assert sentence in error.message
    assert remedy in error.remedy


# ------------------------------------------------------------------------------------------ who else writes

NETWORK = (
    "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n"
    " \\ n0: index=0,type={},{}\r\n"
)


def devices(*kinds: str, anonymous: bool = True, netdev: str = "user") -> dict[str, Any]:
    listed = [{"name": "type", "type": "string"}]
    listed += [{"name": f"device[{at}]", "type": f"child<{kind}>"} for at, kind in enumerate(kinds)]
    return {
        "qom-list /machine/peripheral": [] if anonymous else listed,
        "qom-list /machine/peripheral-anon": listed if anonymous else [],
        "human-monitor-command": NETWORK.format(netdev, "net=10.0.2.0,restrict=off"),
    }


def test_devices_that_qemu_drives_are_right() -> None:
    ask(checks.check_devices, devices("virtio-net-pci", "virtio-rng-pci", "virtio-blk-pci", "nvme"))


@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["vhost-user-fs-pci", "vhost-user-blk-pci", "vfio-pci", "vhost-vdpa-device-pci", "x-pci-proxy-dev"],
)
def test_devices_with_a_view_of_their_own_are_refused(kind: str, anonymous: bool) -> None:
    error = refusal(checks.check_devices, devices("virtio-rng-pci", kind, anonymous=anonymous))
    assert error.message.startswith(f"device device[1] ({kind}) reaches guest memory past QEMU")
    assert "unplug it" in error.remedy


@pytest.mark.parametrize("kind", ["vhost-user", "vhost-vdpa"])
def test_network_of_such_a_kind_is_refused(kind: str) -> None:
    error = refusal(checks.check_devices, devices("virtio-net-pci", netdev=kind))
    assert error.message.startswith(f"network device n0 ({kind})")


def test_o_direct_matters_while_the_guest_runs() -> None:
    direct = NODE | {"cache": CACHE | {"direct": True}}
    ask(lambda qmp: checks.check_blocks(qmp, precopy=True), {"query-named-block-nodes": [NODE, NODE]})
    ask(lambda qmp: checks.check_blocks(qmp, precopy=False), {"query-named-block-nodes": [NODE, direct]})
    error = refusal(
        lambda qmp: checks.check_blocks(qmp, precopy=True), {"query-named-block-nodes": [NODE, direct]}
    )
    assert "block node #block1 (/disk) is open with O_DIRECT" in error.message
    assert "cache.direct=off" in error.remedy


@pytest.mark.parametrize("precopy", [True, False])
def test_drivers_that_pin_guest_memory_are_refused(precopy: bool) -> None:
    node = NODE | {"drv": "io_uring", "file": ""}
    error = refusal(
        lambda qmp: checks.check_blocks(qmp, precopy=precopy), {"query-named-block-nodes": [node]}
    )
    assert "#block1 (io_uring), by its driver io_uring, reaches" in error.message


def test_what_qemu_itself_has_against_it() -> None:
    ask(checks.check_blockers, {"query-migrate": {}})
    blocked = {"blocked-reasons": ["non-migratable device: 0000:00:02.0/nvme"]}
    error = refusal(checks.check_blockers, {"query-migrate": blocked})
    assert "non-migratable device: 0000:00:02.0/nvme" in error.message


# ------------------------------------------------------------------------------------------ by the process


def view(*files: str, locked_bytes: int | None = 0) -> checks.ProcessView:
    return checks.ProcessView((), locked_bytes, frozenset({"/dev/null", "/dev/kvm", *files}))


def test_an_ordinary_process_is_right() -> None:
    warnings: list[str] = []
    checks.check_process(view(locked_bytes=GIB - 1), GIB, warnings)
    checks.check_process(view(locked_bytes=None), GIB, warnings)
    assert warnings == []


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (view(locked_bytes=GIB), "QEMU has locked its memory"),
        (view("/dev/vfio/12"), "/dev/vfio/12 reaches guest memory"),
        (view("/dev/vhost-vdpa-0"), "/dev/vhost-vdpa-0 reaches guest memory"),
        (view("/dev/iommu"), "/dev/iommu reaches guest memory"),
    ],
)
def test_a_process_that_shares_or_locks_is_refused(seen: checks.ProcessView, sentence: str) -> None:
    with pytest.raises(PageferryError) as caught:
        checks.check_process(seen, GIB, [])
    assert sentence in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("seen", "warning"),
    [
        (view("/dev/vhost-net"), "/dev/vhost-net is open"),
        (checks.ProcessView(None, None, None), "could not be looked at"),
    ],
)
def test_what_is_only_warned_about(seen: checks.ProcessView, warning: str) -> None:
    warnings: list[str] = []
    checks.check_process(seen, GIB, warnings)
    assert [warning in text for text in warnings] == [True]


def test_a_view_of_a_process() -> None:
    mine = checks.ProcessView.of(1 << 22)  # above pid_max
    assert mine == checks.ProcessView(None, None, None)

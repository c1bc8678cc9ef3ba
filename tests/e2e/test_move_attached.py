# SPDX-License-Identifier: Apache-2.0
"""A QEMU that was started by somebody who has never heard of us, and runs, is attached to and moves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pageferry.phases import Phase
from tests.support.move_bytes import differing_pages
from tests.support.move_guests import Guests, check_at_target, look_at_every_page, shape
from tests.support.move_pair import TARGET, Move, Pair, Vms
from tests.support.processes import command
from tests.support.qemu import Qemu
from tests.support.requires import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="system calls are injected on x86-64 alone"),
]
PLAIN = {"under_shim": False}
SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


def attach(pair: Pair, vm: Qemu, **changed: str) -> "subprocess.CompletedProcess[str]":
    options = {"pid": str(vm.pid), "ram": str(vm.ram_file), "socket": str(pair.handoff("source"))} | changed
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return subprocess.run(
        [*command("pageserver", "attach"), *arguments], capture_output=True, text=True, check=False
    )


def attached(pair: Pair, vm: Qemu) -> None:
    done = attach(pair, vm)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"process {vm.pid}: {vm.shape.memory_mib * 256} pages can be moved\n"


@pytest.mark.parametrize(
    ("machine", "flat_out", "extra"), [("pc", True, ()), ("microvm", False, SANDBOX)], ids=["pc", "sandbox"]
)
def test_a_vm_that_runs_is_attached_to_and_moves(
    pair: Pair, guests: Guests, machine: str, flat_out: bool, extra: tuple[str, ...]
) -> None:
    saved = guests.saved(shape(machine, flat_out=flat_out))
    with Vms(pair, saved, at_source=PLAIN | {"extra": extra}) as vms:
        descriptors = descriptors_of(vms.source)
        attached(pair, vms.source)
        assert descriptors_of(vms.source) == descriptors
        gate = vms.there.before("resume")
        move = Move(pair, hold_source=True, manual_switchover=True)
        move.wait_for(TARGET, lambda told: told.round > 2, "in its third round")
        look_at_every_page(vms.source)
        move.switch_over()
        gate.wait()
        move.wait_ends(Phase.COMMITTED, Phase.COMMITTED)
        assert differing_pages(vms.source.ram_file, vms.target.ram_file) == []
        gate.go()
        move.release()
        move.wait_ends(Phase.RELEASED, Phase.RELEASED)
        check_at_target(vms.source, vms.target)


def descriptors_of(vm: Qemu) -> list[str]:
    return sorted(str(link.readlink()) for link in Path(f"/proc/{vm.pid}/fd").iterdir())


def test_what_cannot_be_attached_to_runs_on(pair: Pair, guests: Guests, tmp_path: Path) -> None:
    with Vms(pair, guests.saved(shape("microvm")), at_source=PLAIN) as vms:
        other = tmp_path / "other.ram"
        other.write_bytes(bytes(8192))
        for status, sentence, changed in (
            (71, "has 8192 bytes, of which 0 are mapped", {"ram": str(other)}),
            (65, "cannot be opened: No such file", {"ram": f"{other}.not"}),
            (65, "0 open memfds of the name 'x'", {"ram": "memfd:x"}),
            (69, "there is no process", {"pid": str(2**22 - 1)}),
            (69, "no page server takes a VM at", {"socket": f"{tmp_path}/nobody"}),
            (71, "of which 0 are mapped", {"pid": str(os.getpid())}),
        ):
            done = attach(pair, vms.source, **changed)
            assert (done.returncode, sentence in done.stderr) == (status, True), done.stderr
        attached(pair, vms.source)
        again = attach(pair, vms.source)
        assert again.returncode != 0
        assert "another userfaultfd" in again.stderr
        vms.source.console.wait_beats(2)
        look_at_every_page(vms.source)
        assert vms.source.console.beats[-1].errors == 0


def test_a_process_with_a_filter_of_its_own_is_left_alone(pair: Pair) -> None:
    """A call that it forbids could end the process."""
    allow_all = "b'\\x06\\0\\0\\0\\0\\0\\xff\\x7f'"  # one instruction: return SECCOMP_RET_ALLOW
    filtered = (
        "import ctypes, struct, sys; libc = ctypes.CDLL(None);"
        f"code = ctypes.create_string_buffer({allow_all}, 8);"
        "program = struct.pack('HxxxxxxP', 1, ctypes.addressof(code));"
        "libc.prctl(38, 1, 0, 0, 0); libc.prctl(22, 2, program, 0, 0); sys.stdin.read(1)"
    )
    with subprocess.Popen([sys.executable, "-c", filtered], stdin=subprocess.PIPE) as process:
        while "Seccomp:\t2" not in Path(f"/proc/{process.pid}/status").read_text():
            assert process.poll() is None
        arguments = [f"--pid={process.pid}", "--ram=/dev/null", f"--socket={pair.handoff('source')}"]
        done = subprocess.run(
            [*command("pageserver", "attach"), *arguments], capture_output=True, text=True, check=False
        )
        assert process.poll() is None
        process.communicate(b"x")
    assert done.returncode == 71
    assert "has a seccomp filter" in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""`faultclient doctor` tells the truth: as each kind of user, with what each is given, and on kernels that
lack something, every verdict is tried out right after by verdicts.c, which shares nothing with the probe and
tries it in other ways; and the two agree."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from pageferry.reasons import Exit
from pageferry.service.native import Verdict, probe
from tests.support.processes import command, environment
from tests.support.settings import SHMEM_ENABLED, Settings

FOLDER: Final = Path(__file__).parent
NOBODY: Final = 65534
DEVICE: Final = Path("/dev/userfaultfd")
PATIENCE_S: Final = 60.0
MIB: Final = 1 << 20
# Bits of _UFFDIO_*, as the kernel's header has them.
CALLS: Final = {2: "WAKE", 3: "COPY", 4: "ZEROPAGE", 7: "CONTINUE", 8: "POISON", 6: "WRITEPROTECT"}
KINDS: Final = {
    "shared_memory": "Mm",
    "tmpfs_memory": "Mm",
    "private_memory": "MM",
    "huge_shared_memory": "Mm",
    "huge_private_memory": "MM",
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become somebody else")


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """A folder with verdicts and filtered, which every user can read."""
    with tempfile.TemporaryDirectory(prefix="pageferry-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        flags = ["-std=gnu17", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-O1", "-pthread"]
        for program in ("verdicts", "filtered"):
            subprocess.run(["gcc", *flags, FOLDER / f"{program}.c", "-o", folder / program], check=True)
        yield folder


# --------------------------------------------------------------------------------------- who asks, and where


def readable_by_nobody() -> bool:
    """Our own files, for which a checkout in somebody's home is not enough."""
    parts = [FOLDER, *FOLDER.parents, Path(command("faultclient")[0]).parent]
    return all(part.stat().st_mode & 0o005 == 0o005 for part in parts)


def as_nobody(*capabilities: str) -> list[str]:
    """Reading what everybody reads elsewhere is no right that counts here."""
    caps = [*capabilities, *([] if readable_by_nobody() else ["dac_read_search"])]
    listed = ",".join(f"+{cap}" for cap in caps)
    given = [f"--inh-caps={listed}", f"--ambient-caps={listed}"] if caps else []
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *given]


@dataclass
class Place:
    """How a program is started there."""

    programs: Path
    before: Sequence[str] = ()
    fds: Sequence[int] = ()
    kept: ExitStack = field(default_factory=ExitStack)

    def started(self, program: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.before, *program],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            pass_fds=tuple(self.fds),
            env=environment(),
        )

    def doctor(self) -> tuple[dict[str, Any], int]:
        given = [f"--device-fd={fd}" for fd in self.fds]
        done = self.started(command("faultclient", "doctor", "--json", *given))
        assert done.returncode in (Exit.OK, Exit.SYSTEM), done.stderr
        assert (done.stderr != "") == (done.returncode != Exit.OK)
        return json.loads(done.stdout), done.returncode

    def tried(self) -> dict[str, list[str]]:
        done = self.started([str(self.programs / "verdicts"), *map(str, self.fds)])
        assert done.returncode == 0, done.stderr
        return {name: words for name, *words in map(str.split, done.stdout.splitlines())}


@pytest.fixture
def place(programs: Path) -> Iterator[Place]:
    with ExitStack() as kept:
        yield Place(programs, kept=kept)


@pytest.fixture
def settled() -> Iterator[None]:
    """What other tests change meanwhile stands still, and there is a pool of huge pages."""
    if os.geteuid() != 0:
        pytest.skip("needs root: to set this machine up")
    with Settings() as machine:
        machine.write(SHMEM_ENABLED, "never")
        machine.add_huge_pages(4)
        yield


def root(place: Place) -> None:
    assert os.geteuid() == 0


def nobody(place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to become somebody else")
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("vm.unprivileged_userfaultfd is 1")
    place.before = as_nobody()


def nobody_with_the_device(place: Place) -> None:
    nobody(place)
    if not DEVICE.exists():
        pytest.skip("no /dev/userfaultfd here")
    fd = os.open(DEVICE, os.O_RDWR)
    place.kept.callback(os.close, fd)
    place.fds = (fd,)


def nobody_with_the_capability(place: Place) -> None:
    """What the remedy of `nobody` says first."""
    nobody(place)
    place.before = as_nobody("sys_ptrace")


# ------------------------------------------------------------------------------------------- what it comes to


def verdict_of(name: str, words: list[str], found: str) -> str:
    """The verdict that what was tried makes of it; AssertionError: what was found is not what was tried."""
    match name, words:
        case "userfaultfd", [answer]:
            return "GOOD" if answer == "yes" else "BAD"
        case "kernel_faults", ["told", "yes"]:
            return "GOOD"
        case "kernel_faults", ["untold", "EFAULT"]:
            return "BAD"
        case "kernel_faults", ["untried"]:
            return "UNTRIED"
        case "handshake", [answer, features, unknown]:
            assert f"has {features};" in found
            return "FAILED" if answer != "yes" else "GOOD" if unknown == "refuses" else "LESS"
        case _, ["works", events, calls, _] if name in KINDS:
            assert events == KINDS[name]
            assert offered(int(calls, 16)) == named(found)
            return "GOOD"
        case _, ["absent", _] if name in KINDS:
            return "LESS"
        case _, ["filling" | "zapping", *_] if name in KINDS:
            return "FAILED"
        case "dirty_tracking", ["yes", calls]:
            assert offered(int(calls, 16)) == named(found)
            return "GOOD"
        case "dirty_tracking" | "pagemap_scan" | "locked_memory", ["yes" | "none"]:
            return "GOOD"
        case "dirty_tracking" | "pagemap_scan" | "locked_memory", ["ENOTTY" | "EINVAL"]:
            return "LESS"
        case "thp_shared", [pages]:
            return "GOOD" if pages == "1" else "LESS"
        case "thp_private", [unasked, asked]:
            brought = "everywhere" if unasked != "1" else "where asked for" if asked != "1" else "never"
            assert found.startswith(brought)
            return "LESS" if brought == "never" else "GOOD"
        case "swap", [answer]:
            return "GOOD" if answer == "stays" else "LESS"
    return "FAILED"


def offered(calls: int) -> set[str]:
    return {name for bit, name in CALLS.items() if calls >> bit & 1}


def named(found: str) -> set[str]:
    return set(found.partition("offers ")[2].split())


def poison(tried: dict[str, list[str]], found: str) -> str:
    """Of the kinds that work; one where it fails counts."""
    answers = {words[-1] for name, words in tried.items() if name in KINDS and words[0] == "works"}
    if not answers:
        return "UNTRIED"
    met = {answer for answer in answers if answer.startswith("BUS_")}
    if answers == met:
        code, _, lsb = met.pop().partition("/")
        assert f"SIGBUS with {code}, lsb " in found
        assert f"lsb {lsb} " in found or code == "BUS_MCEERR_AR"  # of a huge page it is larger
        return "GOOD"
    return "LESS" if answers <= {"EINVAL", "ENOTTY"} else "FAILED"


def check(told: dict[str, Any], status: int, tried: dict[str, list[str]]) -> dict[str, str]:
    """Every fact that can be tried agrees. The verdicts, by name."""
    facts = {fact["name"]: fact for fact in told["facts"]}
    for name, words in tried.items():
        assert facts[name]["verdict"] == verdict_of(name, words, facts[name]["found"]), (facts[name], words)
    works = {name: tried.get(name, ["untried"])[0] == "works" for name in ("shared_memory", "private_memory")}
    if tried["userfaultfd"] != ["yes"]:
        untried = {*KINDS, "handshake", "poison", "dirty_tracking"}
        assert {facts[name]["verdict"] for name in untried} == {"UNTRIED"}
    elif works["private_memory"]:  # what has failed before leaves the rest untried
        assert facts["poison"]["verdict"] == poison(tried, facts["poison"]["found"])
        assert facts["usable"]["verdict"] == ("GOOD" if works["shared_memory"] else "LESS")
    assert told["usable"] is (status == Exit.OK) is (facts["usable"]["verdict"] in ("GOOD", "LESS"))
    return {name: fact["verdict"] for name, fact in facts.items()}


@pytest.mark.parametrize("who", [root, nobody, nobody_with_the_device, nobody_with_the_capability])
@pytest.mark.usefixtures("settled")
def test_each_verdict_is_true(place: Place, who: Callable[[Place], None]) -> None:
    who(place)
    told, status = place.doctor()
    tried = place.tried()
    verdicts = check(told, status, tried)
    assert told["uid"] == (0 if who is root else NOBODY)
    if who is nobody:
        assert status == Exit.SYSTEM
        assert {verdicts[name] for name in ("userfaultfd", "kernel_faults", "usable")} == {"BAD"}
    else:
        assert status == Exit.OK
        assert tried.keys() == verdicts.keys() - {"poison", "headroom", "usable"}
    assert "FAILED" not in verdicts.values()


def test_the_way_to_a_userfaultfd_is_the_one_that_was_taken(place: Place) -> None:
    nobody_with_the_device(place)
    told, _ = place.doctor()
    assert told["facts"][0]["found"] == "by the device that was passed on"
    place.fds, place.before = (), as_nobody("sys_ptrace")
    told, _ = place.doctor()
    assert told["facts"][0]["found"] == "by the system call"


@pytest.mark.usefixtures("settled")
def test_a_start_leaves_the_pool_alone() -> None:
    """Where a VMM may be counting on its last page."""
    spared, tried = (
        {fact.name: fact for fact in probe(spare_pools=spare) if fact.name.startswith("huge_")}
        for spare in (True, False)
    )
    assert {fact.verdict for fact in tried.values()} == {Verdict.GOOD}
    assert {fact.verdict for fact in spared.values()} == {Verdict.UNTRIED}
    assert all("left alone" in fact.found for fact in spared.values())


# ------------------------------------------------------------------------------------------ on other machines

IOCTL: Final = 16
ABSENT_POISON: Final = f"{IOCTL}:0xc020aa08:22"
LACKS: Final = {
    "no UFFDIO_POISON": (ABSENT_POISON, {"poison": "LESS"}),
    "UFFDIO_POISON fails": (f"{IOCTL}:0xc020aa08:12", {"poison": "FAILED"}),
    "no PAGEMAP_SCAN": (f"{IOCTL}:0xc0606610:25", {"pagemap_scan": "LESS", "dirty_tracking": "LESS"}),
    "UFFDIO_CONTINUE fails": (f"{IOCTL}:0xc020aa07:5", {"shared_memory": "FAILED", "usable": "LESS"}),
}


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.usefixtures("settled")
def test_absent_is_less_and_what_fails_is_failed(place: Place, lack: str) -> None:
    rule, wanted = LACKS[lack]
    place.before = [str(place.programs / "filtered"), rule, "--"]
    told, status = place.doctor()
    verdicts = check(told, status, place.tried())
    assert {name: verdicts[name] for name in wanted} == wanted


@needs_root
def test_huge_pages_that_are_forced_on(place: Place) -> None:
    with Settings() as machine:
        machine.write(SHMEM_ENABLED, "always")
        machine.add_huge_pages(4)
        told, status = place.doctor()
        tried = place.tried()
    assert check(told, status, tried)["thp_shared"] == "LESS"


# ------------------------------------------------------------------------------------------------ the cgroup


@dataclass
class Group:
    """A memory cgroup of the test's own, below the one that it runs in."""

    folder: Path
    limit: str

    def entered(self, *program: object) -> list[str]:
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *map(str, program)]


@pytest.fixture
def group() -> Iterator[Group]:
    """pytest.skip: none can be made."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    first = [path for _, controllers, path in own if "memory" in controllers.split(",")]
    if first:
        above, limit = Path("/sys/fs/cgroup/memory" + first[0]), "memory.limit_in_bytes"
    else:
        above, limit = Path("/sys/fs/cgroup" + next(path for _, none, path in own if not none)), "memory.max"
    folder = above / f"pageferry-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no memory cgroup of one's own can be made")
    try:
        if not (folder / limit).exists():
            pytest.skip("no memory cgroup of one's own can be made")
        yield Group(folder, limit)
    finally:
        folder.rmdir()


@needs_root
def test_as_much_may_be_filled_as_is_said_and_no_more(place: Place, group: Group) -> None:
    (group.folder / group.limit).write_text(str(256 * MIB))
    place.before = group.entered()
    told, status = place.doctor()
    (fact,) = (fact for fact in told["facts"] if fact["name"] == "headroom")
    assert status == Exit.OK
    assert fact["verdict"] == "LESS"
    assert "limit of" in fact["found"]
    assert f"{group.folder} is 256 MiB" in fact["found"]
    room_mib = int(fact["found"].split()[0])
    assert 128 < room_mib < 256
    # Beside what the doctor had filled itself, which is free again now.
    assert filled(place, group, room_mib - 16) == 0
    assert filled(place, group, 256 + 16) == -signal.SIGKILL


def filled(place: Place, group: Group, mib: int) -> int:
    """How a process ends that fills so much of a tmpfs, in the group."""
    file = Path(f"/dev/shm/pageferry-test-{os.getpid()}")
    try:
        return place.started(["dd", "if=/dev/zero", f"of={file}", "bs=1M", f"count={mib}"]).returncode
    finally:
        file.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------- what services do


def run_until_nobody_comes(place: Place, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    given = {
        "--socket": folder / "handoff.sock",
        "--data-address": "127.0.0.1:1",
        "--image": "one",
        "--control-listen": "127.0.0.1:0",
        "--handoff-timeout": 0.2,
        "--log-format": "json",
    }
    words = [f"{name}={value}" for name, value in given.items()]
    done = place.started(command("faultclient", "run", *words))
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.usefixtures("settled")
def test_a_client_goes_on_without_poison_and_says_so_first(place: Place, tmp_path: Path) -> None:
    place.before = [str(place.programs / "filtered"), ABSENT_POISON, "--"]
    status, lines = run_until_nobody_comes(place, tmp_path)
    assert status == Exit.TRY_AGAIN
    degraded, waiting = lines[:2]
    assert (degraded["event"], degraded["level"], degraded["fact"]) == ("degraded", "warning", "poison")
    assert "UFFDIO_POISON" in degraded["found"]
    assert degraded["remedy"] == "use a newer kernel"
    assert waiting["event"] == "waiting"


def test_a_client_without_the_right_serves_all_the_same(place: Place) -> None:
    """It needs none: its VMM does."""
    nobody(place)
    with tempfile.TemporaryDirectory(prefix="pageferry-") as name:
        os.chown(name, NOBODY, NOBODY)
        status, lines = run_until_nobody_comes(place, Path(name))
    assert status == Exit.TRY_AGAIN
    assert (lines[0]["event"], lines[0]["level"]) == ("not_tried", "info")
    assert "waiting" in [line["event"] for line in lines]


@pytest.mark.usefixtures("settled")
def test_a_client_says_what_the_doctor_says(place: Place, tmp_path: Path) -> None:
    """Of what concerns it, and nothing on a machine that has all."""
    concern = {"kernel_faults", "shared_memory", "private_memory", "poison", "pagemap_scan", "thp_shared"}
    told, _ = place.doctor()
    _, lines = run_until_nobody_comes(place, tmp_path)
    said = [line.get("fact") for line in lines[: [line["event"] for line in lines].index("waiting")]]
    less = [fact["name"] for fact in told["facts"] if fact["verdict"] == "LESS"]
    assert said == [name for name in less if name in concern]

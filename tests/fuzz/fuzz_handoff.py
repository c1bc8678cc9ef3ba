# SPDX-License-Identifier: Apache-2.0
"""The hand-off's parser under mutation: seeded, and led by which lines of it an input reaches.

    python -m tests.fuzz.fuzz_handoff [--seconds 60] [--runs N] [--seed N] SEED_FOLDER

An input is refused with a reason, or it is a layout that obeys every rule of docs/handoff.md; anything else
is a finding. Cut in pieces or whole, it must come to the same. Some inputs go through a socket with
descriptors, none of which may be left behind. Ends with libFuzzer's words, which run.py reads.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from pageferry.host import handoff
from pageferry.limits import HANDOFF_BYTES_MAX, PAGE_BYTES, REGIONS_MAX
from pageferry.reasons import PageferryError

PARSER: Final = handoff.__file__
SOCKET_EACH: Final = 10
SHORT_BYTES: Final = 4096  # most are: each byte is looked at one by one
NUMBERS: Final = (
    0,
    1,
    -1,
    4095,
    4096,
    8192,
    1 << 20,
    1 << 30,
    1 << 63,
    (1 << 64) - 4096,
    1 << 64,
    1.5,
    1e400,
    "restore",
    "track",
    "both",
    4242,
)
KEYS: Final = (
    "base_host_virt_addr",
    "size",
    "offset",
    "page_size",
    "page_size_kib",
    "pageferry_frames",
    "pageferry_role",
    "pageferry_pid",
)
# In an input this number stands for our own process: a VM that is handed on.
OURSELVES: Final = b'"pageferry_pid": 4242'
PIECES: Final = (
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\",
    b",",
    b":",
    b"1e9",
    b"NaN",
    b"\xff",
    b" ",
    b"null",
    b"0" * 5000,
)

# -------------------------------------------------------------------------------------------- what is checked


def check_layout(regions: tuple[handoff.Region, ...]) -> None:
    assert 1 <= len(regions) <= REGIONS_MAX
    end = 0
    for region in regions:
        assert region.offset_bytes == end, "the image has a gap, or a part twice"
        assert region.length_bytes > 0
        end += region.length_bytes
        for number in (region.address, region.length_bytes, region.offset_bytes):
            assert type(number) is int
            assert 0 <= number < 1 << 64
            assert number % PAGE_BYTES == 0
        assert region.address + region.length_bytes <= 1 << 64
    for lower, upper in pairwise(sorted(regions, key=lambda one: one.address)):
        assert lower.address + lower.length_bytes <= upper.address, "two pages at one address"


def outcome(parts: list[bytes]) -> object:
    """What becomes of it: the layout, the refusal, or that there is more to come."""
    message = handoff.Message()
    try:
        for part in parts:
            message.take(part)
        if not message.complete:
            return None
        value = message.value()
        regions, frames = handoff.parse(value)
        role, pid = handoff.parse_role(value), handoff.parse_pid(value)
    except PageferryError as error:
        assert str(error)
        return error.reason
    check_layout(regions)
    assert type(frames) is bool and role in handoff.Role
    assert pid is None or 0 < pid < 1 << 31
    return regions, frames, role, pid


def check(data: bytes, dice: random.Random) -> None:
    whole = outcome([data])
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(4)))
    assert outcome([data[a:b] for a, b in pairwise([0, *cuts, len(data)])]) == whole
    assert len(data) <= HANDOFF_BYTES_MAX or whole is not None


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def held(dice: random.Random) -> Iterator[int]:
    """Some process by its pidfd, mostly ourselves; now and then what is none."""
    which = dice.randrange(8)
    fd = (
        os.open(os.devnull, os.O_RDONLY)
        if which == 0
        else os.pidfd_open(os.getppid() if which == 1 else os.getpid())
    )
    try:
        yield fd
    finally:
        os.close(fd)


def check_socket(data: bytes, dice: random.Random) -> None:
    """As from a VMM. Nothing is left open, whatever comes of it."""
    before = descriptors()
    ours, theirs = socket.socketpair()
    data = data.replace(OURSELVES, OURSELVES.replace(b"4242", str(os.getpid()).encode()))
    onward = OURSELVES.partition(b":")[0] in data and dice.randrange(8) > 0
    with ours, theirs, Path(os.devnull).open("rb") as null, held(dice) as pidfd:
        fds = [null.fileno()] * dice.choice((1, 1, 1, 2, 2, 2, 3, 17) if dice.randrange(20) else (0,))
        if onward and dice.randrange(8):
            fds = [null.fileno()] * dice.choice((2, 3)) + [pidfd]
        with contextlib.suppress(BlockingIOError):
            theirs.setblocking(False)
            socket.send_fds(theirs, [data or b"["], fds)
        theirs.shutdown(socket.SHUT_WR)
        uids = () if dice.randrange(20) == 0 else (os.getuid(),)
        received = functools.partial(handoff.receive, ours, uids=uids, in_its_place=onward)
        with contextlib.suppress(PageferryError), received() as taken:
            check_layout(taken.regions)
            assert taken.length_bytes > 0
            assert taken.shared == (len(fds) >= 2)
            assert taken.handed_on == (len(fds) == 4) and (onward or not taken.handed_on)
            assert not taken.handed_on or (taken.role is handoff.Role.BOTH and taken.pid == os.getpid())
            if dice.randrange(2):
                fd = taken.release()
                for one in (fd, taken.uffd, taken.backing_fd, taken.pidfd, taken.table_fd):
                    if one >= 0:
                        os.close(one)
    assert descriptors() == before, "a descriptor is left behind"


# --------------------------------------------------------------------------------------------------- mutation


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from places(value[key])


def change_value(value: Any, dice: random.Random) -> Any:
    found = list(places(value))
    if not found:
        return [{key: dice.choice(NUMBERS) for key in KEYS}]
    container, key = dice.choice(found)
    match dice.randrange(5):
        case 0:
            container[key] = dice.choice((*NUMBERS, None, True, "x", [], {}))
        case 1:
            if isinstance(container[key], int):
                container[key] += dice.choice((1, -1, 4096, -4096, 1 << 20, -(1 << 20)))
        case 2:
            del container[key]
        case 3:
            if isinstance(container, dict):
                container[dice.choice(KEYS)] = dice.choice(NUMBERS)
        case _:
            if isinstance(container, list):
                container.insert(key, json.loads(json.dumps(container[key])))
                if isinstance(container[key], dict) and type(size := container[key].get("size")) is int:
                    for name in ("offset", "base_host_virt_addr"):
                        if type(container[key].get(name)) is int and dice.randrange(3):
                            container[key][name] += size
    return value


def change_bytes(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    at = dice.randrange(len(changed) + 1)
    match dice.randrange(4):
        case 0:
            changed[at:at] = dice.choice(PIECES)
        case 1:
            del changed[at : at + dice.randrange(1, 9)]
        case 2:
            if at < len(changed):
                changed[at] ^= 1 << dice.randrange(8)
        case _:
            changed[at:at] = changed[: dice.randrange(1, 400)] * dice.choice((1, 1, 200))
    return bytes(changed)


def changed(data: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.randrange(1, 5)):
        value: Any = None
        if dice.randrange(4):
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(data)
        if value is None or (isinstance(value, list) and len(value) > 2 * REGIONS_MAX):
            data = change_bytes(data, dice)
        else:
            data = json.dumps(change_value(value, dice)).encode()
    return data[: SHORT_BYTES if dice.randrange(300) else 2 * HANDOFF_BYTES_MAX]


# --------------------------------------------------------------------------------------------------- coverage


def lines_of(code: CodeType) -> set[int]:
    own = {line for _, _, line in code.co_lines() if line}
    return own.union(*(lines_of(one) for one in code.co_consts if isinstance(one, CodeType)))


class Lines:
    """Which lines of the parser have run; those of its definitions ran when it was imported."""

    def __init__(self) -> None:
        module = compile(Path(PARSER).read_text(), PARSER, "exec")
        bodies = [one for one in module.co_consts if isinstance(one, CodeType)]
        functions = [*bodies, *(f for one in bodies for f in one.co_consts if isinstance(f, CodeType))]
        self.all = set().union(*(lines_of(one) - {one.co_firstlineno} for one in functions))
        self.all -= {line for _, _, line in module.co_lines() if line}
        for body in bodies:
            if not body.co_flags & 0x02:  # the body of a class
                self.all -= {line for _, _, line in body.co_lines() if line}
        self.seen: set[int] = set()

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != PARSER:
            return None
        if event == "line":
            self.seen.add(frame.f_lineno)
        return self._trace

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def run(corpus: list[bytes], dice: random.Random, seconds: float, runs: int) -> tuple[int, Lines]:
    lines = Lines()
    done = 0
    end = time.monotonic() + seconds
    seeds = list(corpus)
    while done < runs and time.monotonic() < end:
        by_socket = done % SOCKET_EACH == 0
        data = seeds[done] if done < len(seeds) else dice.choice(corpus)
        if done >= len(seeds) and not (by_socket and dice.randrange(2)):
            data = changed(data, dice)
        before = len(lines.seen)
        traced = by_socket or done < len(seeds) or dice.randrange(4) == 0
        try:
            with lines if traced else contextlib.nullcontext():
                check(data, dice)
                if by_socket and len(data) < HANDOFF_BYTES_MAX:
                    check_socket(data, dice)
        except BaseException:
            print(f"finding after {done + 1} runs: {data!r}", file=sys.stderr)
            raise
        if len(lines.seen) > before:
            corpus.append(data)
        done += 1
    return done, lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=1 << 60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 32))
    parser.add_argument("seeds", type=Path)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    assert threading.active_count() == 1
    corpus = [path.read_bytes() for path in sorted(options.seeds.iterdir())]
    done, lines = run(corpus, random.Random(options.seed), options.seconds, options.runs)
    print(f"missed lines: {sorted(lines.all - lines.seen)}")
    print(f"stat::number_of_executed_units: {done}")
    print(f"lines: {len(lines.seen & lines.all)} of {len(lines.all)}")


if __name__ == "__main__":
    main()

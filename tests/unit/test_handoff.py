# SPDX-License-Identifier: Apache-2.0
"""What a VMM may send when it hands over, in every form it was seen in; what is refused leaves nothing open.

The descriptors are pipes here: what they lead to is looked at when the pager opens
(test_faultclient_pager.py).
"""

import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pageferry.host import handoff as module
from pageferry.host.handoff import (
    FDS_MAX,
    Handoff,
    Message,
    Region,
    Role,
    identify,
    parse,
    parse_page_bytes,
    parse_role,
    receive,
)
from pageferry.limits import HANDOFF_BYTES_MAX, REGIONS_MAX
from pageferry.reasons import PageferryError, Reason
from tests.support.handoff_client import GENERATIONS, PAGE_BYTES, layout, region, send
from tests.support.processes import unchanged

ADDRESS = 0x7F3C_0000_0000
ONE = layout(region(ADDRESS, 32768))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Whatever is refused: what came is closed."""
    with unchanged():
        yield


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FD_PAUSE_S", 0.001)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def taken(connection: socket.socket) -> Handoff:
    return receive(connection, uids={os.geteuid()})


def refusal(connection: socket.socket) -> PageferryError:
    with pytest.raises(PageferryError) as caught:
        taken(connection)
    return caught.value


def regions_of(*elements: Any) -> tuple[Region, ...]:
    regions, _ = parse(list(elements))
    return regions


def page_bytes_of(*elements: Any) -> int:
    value = list(elements)
    parse(value)
    return parse_page_bytes(value)


def why_not(*elements: Any) -> PageferryError:
    with pytest.raises(PageferryError) as caught:
        parse(list(elements))
    return caught.value


# ----------------------------------------------------------------------------------------- what is understood


@pytest.mark.parametrize("generation", GENERATIONS)
def test_each_generation(generation: str) -> None:
    (found,) = regions_of(region(ADDRESS, 32768, generation=generation))
    assert found == Region(ADDRESS, 32768 * PAGE_BYTES, 0)


def test_keys_come_in_any_order() -> None:
    keys = list(region(ADDRESS, 16).items())
    shuffled = random.Random(1)
    for _ in range(10):
        shuffled.shuffle(keys)
        assert regions_of(dict(keys)) == (Region(ADDRESS, 16 * PAGE_BYTES, 0),)


@pytest.mark.parametrize(
    "unknown", [{"gpa_start": 1.5, "is_guest_memfd": False}, {"later": {"deep": [None, "\u20ac]"]}}]
)
def test_unknown_keys_are_ignored(unknown: dict[str, Any]) -> None:
    assert regions_of(region(ADDRESS, 16) | unknown) == regions_of(region(ADDRESS, 16))


def test_four_regions_whose_order_in_memory_is_another() -> None:
    """Seen with 3200 MiB: the second region lies just below the first, and touches it."""
    first, second = region(ADDRESS, 64), region(ADDRESS - 16 * PAGE_BYTES, 16, 64)
    third, fourth = region(ADDRESS + 64 * PAGE_BYTES, 8, 80), region(ADDRESS + (1 << 30), 8, 88)
    found = regions_of(third, first, fourth, second)
    assert [entry.offset_bytes // PAGE_BYTES for entry in found] == [0, 64, 80, 88]
    assert found[1].address < found[0].address


def test_as_many_regions_as_are_allowed_and_one_more(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    regions = [region(ADDRESS + index * PAGE_BYTES, 1, index) for index in range(REGIONS_MAX)]
    message = layout(*regions)
    assert len(message) > 1024  # the buffer of the reference
    send(pair[1], message, pipe[:1])
    with taken(pair[0]) as handoff:
        assert len(handoff.regions) == REGIONS_MAX
        assert handoff.length_bytes == REGIONS_MAX * PAGE_BYTES
    one_more = region(ADDRESS + REGIONS_MAX * PAGE_BYTES, 1, REGIONS_MAX)
    assert "65 regions: at most 64" in str(why_not(*regions, one_more))


@pytest.mark.parametrize(
    "said, speaks", [({}, False), ({"pageferry_frames": 1}, True), ({"pageferry_frames": 0}, False)]
)
def test_frames(said: dict[str, int], speaks: bool) -> None:
    assert parse([region(ADDRESS, 16) | said])[1] is speaks


@pytest.mark.parametrize(
    "said, role, restores, tracks",
    [
        ({}, Role.RESTORE, True, False),
        ({"pageferry_role": "restore"}, Role.RESTORE, True, False),
        ({"pageferry_role": "track"}, Role.TRACK, False, True),
        ({"pageferry_role": "both"}, Role.BOTH, True, True),
    ],
)
def test_roles(said: dict[str, str], role: Role, restores: bool, tracks: bool) -> None:
    found = parse_role([region(ADDRESS, 16) | said])
    assert (found, found.restores, found.tracks) == (role, restores, tracks)


@pytest.mark.parametrize("said", ["", "Track", 1, None, [], {}])
def test_a_role_that_nobody_knows(said: object) -> None:
    with pytest.raises(PageferryError) as caught:
        parse_role([region(ADDRESS, 16) | {"pageferry_role": said}])
    assert caught.value.reason is Reason.UNSUPPORTED
    assert "which nobody knows" in str(caught.value)


def test_what_is_taken(pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]) -> None:
    send(pair[1], ONE, pipe[:1])
    with taken(pair[0]) as handoff:
        assert not handoff.shared
        assert handoff.pid == os.getpid()
        assert handoff.uid == os.geteuid()
        assert handoff.backing_fd == -1
        assert os.path.sameopenfile(handoff.uffd, pipe[0])
        for fd in (handoff.uffd, handoff.pidfd):
            assert not os.get_inheritable(fd)


def test_two_descriptors_are_memory_on_a_file(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    send(pair[1], ONE, pipe)
    with taken(pair[0]) as handoff:
        assert handoff.shared
        assert os.path.sameopenfile(handoff.uffd, pipe[0])
        assert os.path.sameopenfile(handoff.backing_fd, pipe[1])


def test_what_was_released_is_not_closed(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    send(pair[1], ONE, pipe)
    handoff = taken(pair[0])
    fds = [handoff.uffd, handoff.backing_fd, handoff.pidfd]
    with handoff:
        fds.append(handoff.release())
    for fd in fds:
        os.close(fd)


# -------------------------------------------------------------------------------------------- how it comes in


def test_split_at_each_byte(pipe: tuple[int, int]) -> None:
    """The descriptors come with the first part, or with the second."""
    message = layout(region(ADDRESS, 16) | {"text": 'a\\"]}[{\u20ac'}, region(ADDRESS + (1 << 30), 16, 16))
    for cut in range(1, len(message)):
        for fds in ((pipe, ()), ((), pipe)):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                send(theirs, message[:cut], fds[0])
                send(theirs, message[cut:], fds[1])
                with taken(ours) as handoff:
                    assert handoff.shared
                    assert len(handoff.regions) == 2


def test_byte_by_byte(pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]) -> None:
    send(pair[1], ONE[:1], pipe[:1])
    for byte in ONE[1:]:
        pair[1].send(bytes([byte]))
    with taken(pair[0]) as handoff:
        assert handoff.length_bytes == 32768 * PAGE_BYTES


def test_end_of_stream_right_after_it(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    """Firecracker up to 1.11 closes at once."""
    send(pair[1], ONE, pipe[:1])
    pair[1].close()
    with taken(pair[0]) as handoff:
        assert handoff.length_bytes == 32768 * PAGE_BYTES


@pytest.mark.parametrize("sent", [0, 1, len(ONE) - 1])
def test_end_of_stream_before_its_end(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int], sent: int
) -> None:
    if sent:
        send(pair[1], ONE[:sent], pipe)
    pair[1].close()
    assert "closed the socket before" in str(refusal(pair[0]))


def test_it_takes_too_long(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDOFF_TIMEOUT_MS", 20)
    send(pair[1], ONE[:-1], pipe)
    error = refusal(pair[0])
    assert error.reason is Reason.TOO_SLOW
    assert "not complete in 20 ms" in str(error)


def test_a_peer_that_never_stops_sending_is_too_slow_too(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is always something to read: the time is up all the same."""
    monkeypatch.setattr(module, "HANDOFF_TIMEOUT_MS", 50)
    over = threading.Event()

    def dribble() -> None:
        pair[1].send(b"[")
        while not over.is_set():
            pair[1].send(b" ")
            time.sleep(0.001)

    sender = threading.Thread(target=dribble)
    sender.start()
    try:
        assert refusal(pair[0]).reason is Reason.TOO_SLOW
    finally:
        over.set()
        sender.join()


@pytest.mark.parametrize("more", [b"[]", b"\0", b"{", b"PFM1"])
def test_nothing_may_follow(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int], more: bytes
) -> None:
    send(pair[1], ONE + more, pipe)
    assert "goes on behind its JSON value" in str(refusal(pair[0]))


def test_blanks_may_surround_it(pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]) -> None:
    send(pair[1], b" \r\n\t" + ONE + b"\n", pipe)
    with taken(pair[0]) as handoff:
        assert handoff.shared


def test_one_byte_too_long(pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]) -> None:
    padded = ONE[:-1] + b" " * (HANDOFF_BYTES_MAX - len(ONE)) + b"]"
    message = Message()
    message.take(padded)
    assert message.complete
    send(pair[1], ONE[:-1] + b" " * (HANDOFF_BYTES_MAX - len(ONE) + 1), pipe)
    pair[1].send(b"]")
    assert f"longer than {HANDOFF_BYTES_MAX}" in str(refusal(pair[0]))


# -------------------------------------------------------------------------------------------- the descriptors


@pytest.mark.parametrize("count", [3, 4, FDS_MAX])
def test_more_descriptors_than_two(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int], count: int
) -> None:
    send(pair[1], ONE, (pipe * FDS_MAX)[:count])
    error = refusal(pair[0])
    assert f"{count} file descriptors" in str(error)
    assert error.reason is (Reason.UNSUPPORTED if count == 3 else Reason.BAD_REQUEST)


def test_more_descriptors_than_fit(pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]) -> None:
    send(pair[1], ONE, pipe * FDS_MAX)
    assert "was cut" in str(refusal(pair[0]))


def test_descriptors_of_several_parts_count_together(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    send(pair[1], ONE[:5], pipe)
    send(pair[1], ONE[5:], pipe)
    assert "4 file descriptors" in str(refusal(pair[0]))


def test_no_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    send(pair[1], ONE)
    assert "0 file descriptors" in str(refusal(pair[0]))


def test_no_descriptor_and_no_more_to_come(pair: tuple[socket.socket, socket.socket]) -> None:
    send(pair[1], ONE)
    pair[1].close()
    assert "0 file descriptors" in str(refusal(pair[0]))


def test_a_descriptor_that_comes_a_little_later(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    send(pair[1], ONE)
    send(pair[1], b"\n", pipe[:1])
    with taken(pair[0]) as handoff:
        assert not handoff.shared


# --------------------------------------------------------------------------------------------------- the peer


class Credentials:
    """A connection whose peer is what the test says."""

    def __init__(self, pid: int, uid: int) -> None:
        self._packed = struct.pack("3i", pid, uid, 0)

    def getsockopt(self, *_: int) -> bytes:
        return self._packed


def test_somebody_elses_process(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(PageferryError, match="--vmm-uid") as caught:
        receive(pair[0], uids={os.geteuid() + 1})
    assert caught.value.reason is Reason.NOT_ALLOWED


def test_a_peer_in_another_pid_namespace() -> None:
    peer = identify(Credentials(0, 7), {7})  # type: ignore[arg-type]
    assert (peer.pid, peer.pidfd) == (0, -1)


def test_a_peer_that_has_exited() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(PageferryError, match="has exited") as caught:
        identify(Credentials(child.pid, 0), {0})  # type: ignore[arg-type]
    assert caught.value.reason is Reason.NO_VMM


def test_no_pidfd_to_be_had(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    assert refusal(pair[0]).reason is Reason.UNSUPPORTED


# -------------------------------------------------------------------------------------------- what is refused


def test_the_older_name_of_the_page_size_is_bytes_too() -> None:
    old = region(ADDRESS, 512, generation="1.7")
    assert regions_of(old | {"page_size_kib": 4096}) == regions_of(old)
    assert page_bytes_of(old | {"page_size_kib": 2097152}) == 2097152


def test_the_newer_name_counts() -> None:
    assert page_bytes_of(region(ADDRESS, 16, page_size=4096, page_size_kib=2097152)) == 4096
    assert page_bytes_of(region(ADDRESS, 512, page_size=2097152, page_size_kib=4096)) == 2097152


def test_without_either_name_pages_are_small() -> None:
    assert page_bytes_of(region(ADDRESS, 512, generation="1.1")) == 4096


def test_sizes_that_can_be_served() -> None:
    assert page_bytes_of(region(0, 2 << 18, page_size=1 << 30)) == 1 << 30
    error = why_not(region(0, 512, page_size=65536))
    assert error.reason is Reason.UNSUPPORTED
    assert "pages of 65536 bytes: 4096, 2097152, 1073741824 can be served" in str(error)


@pytest.mark.parametrize("key", ["base_host_virt_addr", "size", "offset"])
def test_regions_are_whole_pages_of_their_size(key: str) -> None:
    huge = region(ADDRESS, 1024, page_size=2097152)
    assert regions_of(huge)
    assert "is no multiple of 2097152" in str(why_not(huge | {key: huge[key] + 4096}))


def test_only_a_huge_page_that_nobody_can_wait_for_lands_first(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    send(pair[1], layout(region(0, 1 << 18, page_size=1 << 30)), pipe[:1])
    with taken(pair[0]) as handoff:
        assert handoff.page_bytes == 1 << 30
        assert handoff.lands_first


@pytest.mark.parametrize("role", ["track", "both"])
def test_writes_are_not_followed_on_huge_pages(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int], role: str
) -> None:
    send(pair[1], layout(region(0, 512, page_size=2097152, pageferry_role=role)), pipe)
    error = refusal(pair[0])
    assert error.reason is Reason.UNSUPPORTED
    assert "what is written to it is followed in pages of 4096 alone" in str(error)


GOOD = region(ADDRESS, 16)
SECOND = region(ADDRESS + (1 << 30), 16, 16)


@pytest.mark.parametrize(
    "elements, says",
    [
        ([], "no array of regions"),
        ([[]], "region 0 is no object"),
        ([GOOD, "region"], "region 1 is no object"),
        ([GOOD | {"size": 0}], "region 0 is empty"),
        ([GOOD | {"size": 4095}], "unaligned: length 0xfff"),
        ([GOOD | {"base_host_virt_addr": ADDRESS + 1}], "unaligned: address"),
        ([GOOD | {"offset": 512}], "unaligned: offset"),
        ([GOOD | {"offset": 4096}], "gap in the image at offset 0x0"),
        ([GOOD, SECOND | {"offset": 32 * 4096}], "gap in the image at offset 0x10000"),
        ([GOOD, SECOND | {"offset": 8 * 4096}], "overlap at offset 0x8000"),
        ([GOOD, region(ADDRESS + 8 * 4096, 16, 16)], f"overlap at address {ADDRESS + 8 * 4096:#x}"),
        ([GOOD, region(ADDRESS, 16, 16)], "overlap at address"),
        ([GOOD, SECOND | {"page_size": 2097152}], "different page sizes"),
        ([GOOD | {"page_size": 0}], "page_size is 0, not a power of two"),
        ([GOOD | {"page_size": 12288}], "not a power of two"),
        ([GOOD | {"page_size": 4096.0}], "page_size is 4096.0, not a whole number"),
        ([GOOD | {"size": 65536.0}], "size is 65536.0, not a whole number"),
        ([GOOD | {"size": -4096}], "size is -4096, not a whole number"),
        ([GOOD | {"size": "65536"}], "size is '65536', not a whole number"),
        ([GOOD | {"size": True}], "size is True, not a whole number"),
        ([GOOD | {"size": None}], "size is None, not a whole number"),
        ([GOOD | {"size": 1 << 64}], "not a whole number from 0 to 2^64 - 1"),
        ([GOOD | {"offset": 10**4000}], "not a whole number"),
        ([{"size": 4096, "offset": 0}], "base_host_virt_addr is None"),
        ([GOOD | {"base_host_virt_addr": (1 << 64) - 4096}], "goes beyond 2^64"),
        ([GOOD, SECOND | {"offset": 16 * 4096, "size": (1 << 64) - 4096}], "goes beyond 2^64"),
    ],
)
def test_bad_regions(elements: list[Any], says: str) -> None:
    error = why_not(*elements)
    assert says in str(error)
    assert len(str(error)) < 200


def test_a_value_that_is_no_array() -> None:
    with pytest.raises(PageferryError, match="no array"):
        parse(GOOD)


@pytest.mark.parametrize(
    "text, says",
    [
        (b'{"size":4096}', "no JSON array"),
        (b"4096", "no JSON array"),
        (b"\xef\xbb\xbf[]", "no JSON array"),
        (b"[}", "no JSON:"),
        (b"[nil]", "no JSON:"),
        (b'[{"size":}]', "no JSON:"),
        (b'[{"size":NaN}]', "NaN is no number"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 30000 + b"]" * 30000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "no JSON:"),
    ],
)
def test_what_is_no_layout_at_all(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int], text: bytes, says: str
) -> None:
    send(pair[1], text, pipe)
    error = refusal(pair[0])
    assert says in str(error)
    assert error.reason is Reason.BAD_REQUEST


def test_any_cut_or_changed_message_is_taken_or_refused_and_never_more(pipe: tuple[int, int]) -> None:
    """A seeded storm: no other exception, no descriptor left."""
    random_bytes = random.Random(20)
    message = bytearray(layout(GOOD, SECOND))
    with unchanged():
        for _ in range(300):
            changed = message.copy()
            for _ in range(random_bytes.randrange(1, 4)):
                changed[random_bytes.randrange(len(changed))] = random_bytes.randrange(256)
            ours, theirs = socket.socketpair()
            with ours, theirs:
                send(theirs, bytes(changed[: random_bytes.randrange(1, len(changed) + 1)]), pipe)
                theirs.close()
                try:
                    taken(ours).close()
                except PageferryError as error:
                    assert error.reason in (Reason.BAD_REQUEST, Reason.UNSUPPORTED)

# SPDX-License-Identifier: Apache-2.0
"""Sessions and live images from outside, by grpcio: who is let in, what ends whose call, rounds.

The same rules without a wire: tests/native/test_gate.c, test_rounds.c, test_live.c.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.support.requires import needs_userfaultfd
from tests.wire.mover import (
    ALL,
    ME,
    PAGES,
    Attached,
    Mover,
    Who,
    bearer,
    describe,
    freeze,
    get,
    mover_of,
    set_session,
)
from tests.wire.page_server import IMMUTABLE, PAGE_BYTES, Image, PageServer, trailers_of

pytestmark = needs_userfaultfd

PAGE_COUNT = 300
PROTOCOL = Path(__file__).parents[2] / "docs/protocol.md"
ATTACHED, SUPERSEDED, ROUND, SILENT = 1, 2, 3, 4
STALL = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
PATIENCE_S = 30


@pytest.fixture
def server(image: Image) -> Iterator[PageServer]:
    """With a session for everything; beside it an image that never changes."""
    with PageServer({"vm": image.path}, live={"live": PAGE_COUNT, "other": 8}) as running:
        set_session(running, ALL)
        yield running


@pytest.fixture
def stub(server: PageServer) -> Iterator[PageServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield PageServiceStub(channel)


def refusal(call: Callable[[], object]) -> tuple[str | None, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return trailers_of(caught.value).get("pageferry-reason"), str(caught.value.details())


def attach(stub: PageServiceStub, who: Who) -> Callable[[], object]:
    return lambda: Attached(stub, who)


def open_round(stub: PageServiceStub, who: Who = ME) -> list[pb.PageBatch]:
    request = pb.StreamPagesRequest(image="live", open_round=True, versions_only=True)
    return list(stub.StreamPages(request, metadata=who.metadata, timeout=60))


# ---------------------------------------------------------------------------------------------- who is let in

STRANGERS = {
    "no token": ME.but(token=None),
    "another token": ME.but(token=bearer(bytes(32))),
    "a token too short": ME.but(token=bearer(bytes(range(31)))),
    "padding": ME.but(token=bearer(bytes(range(32))) + "="),
    "no bearer": ME.but(token=bearer(bytes(range(32))).removeprefix("Bearer ")),
    "unknown session": ME.but(session="mover"),
    "no session": ME.but(session=None),
    "an empty session": ME.but(session=""),
    "malformed besides": ME.but(token=bearer(bytes(32)), target="x", epoch="x"),
}


def test_strangers_hear_one_sentence_whatever_is_wrong(stub: PageServiceStub) -> None:
    heard = set()
    for who in STRANGERS.values():
        heard |= {
            refusal(attach(stub, who)),
            refusal(partial(get, stub, who)),
            refusal(partial(open_round, stub, who)),
            refusal(partial(describe, stub, who)),
        }
    assert len(heard) == 1
    assert heard.pop()[0] == "NOT_ALLOWED"


def test_strangers_change_nothing(server: PageServer, stub: PageServiceStub) -> None:
    for who in STRANGERS.values():
        refusal(attach(stub, who))
    assert server.order("event") == "none"
    Attached(stub)
    assert server.order("event").split()[:4] == [str(ATTACHED), "move", ME.target, "1"]


def test_without_a_session_live_memory_is_described_and_no_more(stub: PageServiceStub) -> None:
    nobody = Who(None, None, None, None)
    described = describe(stub, nobody)
    assert described.live and described.page_count == PAGE_COUNT
    assert described.as_of == 1 << 32, "no round has been settled"
    for call in (lambda: get(stub, nobody), lambda: open_round(stub, nobody), attach(stub, nobody)):
        assert refusal(call)[0] == "NOT_ALLOWED"
    assert get(stub, nobody, "vm").as_of == IMMUTABLE


@pytest.mark.parametrize("target", [None, "", "1", "000000000000000g", "0000000000000000", "0" * 17])
def test_a_target_is_16_hex_digits(stub: PageServiceStub, target: str | None) -> None:
    assert refusal(attach(stub, ME.but(target=target)))[0] == "BAD_REQUEST"


@pytest.mark.parametrize("epoch", [None, "", "0", "-1", "1.5", "18446744073709551616"])
def test_an_epoch_is_a_number_from_1(stub: PageServiceStub, epoch: str | None) -> None:
    assert refusal(attach(stub, ME.but(epoch=epoch)))[0] == "BAD_REQUEST"


def test_pages_are_for_who_has_attached(stub: PageServiceStub) -> None:
    assert refusal(lambda: get(stub))[0] == "WRONG_PHASE"
    assert refusal(lambda: open_round(stub))[0] == "WRONG_PHASE"
    Attached(stub)
    assert len(get(stub).runs) == 4


def test_a_session_is_of_one_image(stub: PageServiceStub) -> None:
    Attached(stub)
    for image in ("other", "vm", "nobody"):
        assert refusal(partial(get, stub, image=image))[0] == "NOT_ALLOWED"


def test_the_first_target_has_it_for_ever(server: PageServer, stub: PageServiceStub) -> None:
    second = ME.but(target="00000000000000ff", epoch="9")
    describe(stub, second)  # to look is not to attach
    first = Attached(stub)
    assert refusal(attach(stub, second))[0] == "ALREADY_ATTACHED"
    assert refusal(lambda: get(stub, second))[0] == "ALREADY_ATTACHED"
    assert first.beat(5).heartbeat == 5
    first.half_close()
    assert list(first.call) == []
    set_session(server, 0)
    set_session(server, ALL)
    assert refusal(attach(stub, second))[0] == "ALREADY_ATTACHED"
    Attached(stub)


# --------------------------------------------------------------------------------------------- who takes over


def test_a_newer_worker_ends_all_of_the_older(server: PageServer, stub: PageServiceStub) -> None:
    """Also bulk that stands still on a connection of its own, with nobody who reads it."""
    old = Attached(stub)
    mover = mover_of(stub)
    for page in range(PAGE_COUNT):
        server.order("write", "live", page, page % 255 + 1)
    mover.round()
    with grpc.insecure_channel(server.address, options=STALL) as channel:
        bulk = PageServiceStub(channel).StreamPages(
            pb.StreamPagesRequest(image="live", encodings=2), metadata=ME.metadata
        )
        newer = Attached(stub, ME.but(epoch="2"))
        assert old.reason() == "SUPERSEDED"
        with pytest.raises(grpc.RpcError) as caught:
            list(bulk)
        assert trailers_of(caught.value)["pageferry-reason"] == "SUPERSEDED"
    assert refusal(attach(stub, ME))[0] == "SUPERSEDED"
    assert refusal(lambda: get(stub))[0] == "SUPERSEDED"
    assert newer.beat(1).heartbeat == 1
    kinds = []
    while (event := server.order("event")) != "none":
        kinds.append((int(event.split()[0]), event.split()[3]))
    # one of a kind, the newest: the older worker's ATTACHED was taken back by nobody
    assert (SUPERSEDED, "2") in kinds and (ROUND, "1") in kinds


def test_the_oldest_of_too_many_urgent_calls_ends(stub: PageServiceStub) -> None:
    most = describe(stub).urgent_calls_max
    calls = [Attached(stub) for _ in range(most + 1)]
    assert calls[0].reason() == "GOING_AWAY"
    for number, one in enumerate(calls[1:], 1):
        assert one.beat(number).heartbeat == number
    calls.append(Attached(stub))
    assert calls[1].reason() == "GOING_AWAY"
    assert calls[-1].beat(7).heartbeat == 7


def test_who_says_nothing_for_too_long_is_ended(stub: PageServiceStub) -> None:
    """HEARTBEAT_TIMEOUT_MS of silence; the one beside it sends heartbeats and goes on."""
    silent, beating = Attached(stub), Attached(stub)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(silent.reason)
        for number in range(1, 5 * PATIENCE_S):
            assert beating.beat(number).heartbeat == number
            with contextlib.suppress(TimeoutError):
                assert waiting.result(timeout=0.2) == "TOO_SLOW"
                break
    assert waiting.done()
    assert beating.beat(1000).heartbeat == 1000


# --------------------------------------------------------------------------------------- what those above say


def test_without_rights_all_calls_end(server: PageServer, stub: PageServiceStub) -> None:
    open_call = Attached(stub)
    set_session(server, 0, phase=pb.PHASE_ABORTED)
    assert open_call.reason() == "WRONG_PHASE"
    for call in (attach(stub, ME), lambda: get(stub), lambda: open_round(stub)):
        assert refusal(call)[0] == "WRONG_PHASE"
    assert describe(stub).live


def test_rounds_are_a_right_of_their_own(server: PageServer, stub: PageServiceStub) -> None:
    Attached(stub)
    set_session(server, PAGES)
    assert refusal(lambda: open_round(stub))[0] == "WRONG_PHASE"
    assert len(get(stub).runs) == 4
    set_session(server, ALL)
    assert open_round(stub)


def test_a_dropped_session_has_never_been(server: PageServer, stub: PageServiceStub) -> None:
    open_call = Attached(stub)
    assert server.order("drop", "move").split() == ["0"]
    assert open_call.reason() == "NOT_ALLOWED"
    assert refusal(lambda: get(stub)) == refusal(lambda: get(stub, ME.but(token=bearer(bytes(32)))))


def test_an_image_that_is_removed_ends_its_calls(server: PageServer, stub: PageServiceStub) -> None:
    open_call = Attached(stub)
    assert server.order("remove", "live").split() == ["0"]
    assert open_call.reason() == "NO_SUCH_IMAGE"
    assert refusal(lambda: get(stub))[0] == "NO_SUCH_IMAGE"


def test_the_phase_is_told_at_first_with_each_echo_and_on_change(
    server: PageServer, stub: PageServiceStub
) -> None:
    call = Attached(stub)
    assert (call.first.phase, call.first.cancel_requested) == (pb.PHASE_PRECOPY, False)
    assert not call.first.manifest_digest and not call.first.runs
    echo = call.beat(1)
    assert (echo.heartbeat, echo.phase) == (1, pb.PHASE_PRECOPY)
    set_session(server, ALL, cancel=True)
    news = call.next()
    assert (news.heartbeat, news.phase, news.cancel_requested) == (0, pb.PHASE_PRECOPY, True)
    digest = bytes(range(16))
    set_session(server, PAGES, phase=pb.PHASE_SWITCHOVER, digest=digest.hex())
    news = call.next()
    assert (news.phase, news.cancel_requested, news.manifest_digest) == (pb.PHASE_SWITCHOVER, False, digest)
    assert call.beat(2).phase == pb.PHASE_SWITCHOVER
    again = Attached(stub)
    assert again.first.manifest_digest == digest
    call.ask(3, 1)
    answer = call.next()
    assert list(answer.runs[:2]) == [3, 1] and answer.phase == pb.PHASE_UNSPECIFIED


# ----------------------------------------------------------------------------------------------------- rounds


def test_memory_moves_by_rounds(server: PageServer, stub: PageServiceStub) -> None:
    """Two rounds and the final one, holes given back and taken again; the manifests of both ends agree."""
    urgent = Attached(stub)
    mover = mover_of(stub)
    for page in range(0, PAGE_COUNT, 2):
        server.order("write", "live", page, page % 250 + 1)
    assert mover.round() == set(range(PAGE_COUNT))
    assert mover.missing() == list(range(0, PAGE_COUNT, 2)), "holes are known by the map"
    mover.fetch()
    assert mover.page(4) == bytes([5]) * PAGE_BYTES
    assert mover.round() == set()

    server.order("write", "live", 4, 77)
    server.order("write", "live", 5, 78)
    server.order("punch", "live", 10)
    assert mover.round() == {4, 5, 10}
    assert {4, 5} <= set(mover.missing()) <= {4, 5, 10}, "a hole may be taken for data, not the other way"
    mover.fetch()

    server.order("write", "live", 6, 79)
    as_of, dirty, digest = freeze(server)
    set_session(server, PAGES, phase=pb.PHASE_SWITCHOVER, digest=digest)
    assert dirty == 1
    assert urgent.next().manifest_digest == bytes.fromhex(digest)
    assert refusal(lambda: open_round(stub))[0] == "WRONG_PHASE"
    assert mover.round(open_new=False) == {6}
    assert mover.since == as_of
    mover.fetch()
    assert mover.manifest() == digest
    wanted = {page: page % 250 + 1 for page in range(0, PAGE_COUNT, 2)} | {4: 77, 5: 78, 6: 79, 10: 0}
    for page in range(PAGE_COUNT):
        assert mover.page(page) == bytes([wanted.get(page, 0)]) * PAGE_BYTES, page


def test_who_runs_on_names_everything_again(server: PageServer, stub: PageServiceStub) -> None:
    Attached(stub)
    mover = mover_of(stub)
    mover.round()
    before, _, digest = freeze(server)
    assert freeze(server) == (before, 0, digest), "to freeze again is to ask again"
    assert server.order("thaw", "live").split() == ["0"]
    assert mover.round() == set(range(PAGE_COUNT))
    assert mover.since == 2 << 32 | 1


def test_since_a_version_that_never_was(stub: PageServiceStub) -> None:
    Attached(stub)
    request = pb.StreamPagesRequest(image="live", since_version=5 << 32, versions_only=True)
    assert refusal(lambda: list(stub.StreamPages(request, metadata=ME.metadata)))[0] == "MISMATCH"


def test_a_vmm_that_has_ended_has_no_more_rounds(server: PageServer, stub: PageServiceStub) -> None:
    Attached(stub)
    server.order("write", "live", 1, 9)
    mover = mover_of(stub)
    mover.round()
    assert server.order("kill", "live") == "ok"
    assert refusal(lambda: open_round(stub))[0] == "NO_VMM"
    assert get(stub).data == bytes([9]) * PAGE_BYTES, "its memory is still here"


def test_news_of_a_session_reach_those_above(server: PageServer, stub: PageServiceStub) -> None:
    call = Attached(stub)
    kind, session, target, epoch, value, _, peer = server.order("event").split()
    assert (int(kind), session, target, epoch, value) == (ATTACHED, "move", ME.target, "1", "1")
    assert peer.startswith("127.0.0.1:")
    mover_of(stub).round()
    kind, *_, value, named, _ = server.order("event").split()
    assert (int(kind), int(value), int(named)) == (ROUND, 1 << 32 | 1, PAGE_COUNT)
    call.half_close()
    assert list(call.call) == []
    deadline = time.monotonic() + PATIENCE_S
    while (event := server.order("event")) == "none" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert int(event.split()[0]) == SILENT
    Attached(stub)
    assert server.order("event").split()[:6] == [str(ATTACHED), "move", ME.target, "1", "0", "0"]


def test_the_manifest_of_the_page(stub: PageServiceStub) -> None:
    """docs/protocol.md, section 10: what this test's own target makes of it is what is written there."""
    told = re.search(r"^ +manifest += ([0-9a-f ]+)$", PROTOCOL.read_text(), re.MULTILINE)
    mover = Mover(stub, 0, 2, held={0: ((1 << 32) + 3, b""), 1: ((1 << 32) + 1, b"")})
    assert told and told[1].replace(" ", "") == mover.manifest()

# SPDX-License-Identifier: Apache-2.0
"""What gets lost on the way: a state that does not load, reports, answers, the page server, the network.

The end is that of docs/phases.md, section 7, each time; and never do two guests run.
"""

import signal
from collections.abc import Iterator

import grpc
import pytest

from pageferry.phases import ENDS, Phase
from pageferry.reasons import ROWS, Reason
from tests.support.footprint import unchanged
from tests.support.move_guests import LIGHT, Guests, check_at_source, check_at_target
from tests.support.move_pair import SOURCE, TARGET, VM, Move, Pair, Session, Vms
from tests.support.move_scenes import Play, arriving, loading, precopy, saving
from tests.support.processes import Process, command
from tests.support.qemu_versions import FetchError, fetch
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd


def newer() -> str:
    try:
        return str(fetch("10.0"))
    except FetchError as error:
        pytest.skip(f"no QEMU 10.0: {error}")


# --------------------------------------------------------------------------------- a state that does not load


def test_a_state_of_a_newer_qemu(pair: Pair, guests: Guests) -> None:
    """A machine without versions promises nothing: 10.0's microvm is more than 7.2's can load."""
    with Vms(pair, guests.saved(LIGHT), at_source={"binary": newer()}) as vms:
        move = Move(pair)
        move.wait_ends(Phase.ABORTED, Phase.ABORTED)
        assert "MIG_CMD" in vms.target.stderr()
        assert move.failure(TARGET) is Reason.MISMATCH
        assert "could not load the guest's state" in move.at(TARGET).message
        assert "start the target's QEMU as the source's" in move.at(TARGET).message
        check_at_source(vms.source, vms.target)


def test_a_state_with_a_device_that_the_target_lacks(pair: Pair, guests: Guests) -> None:
    """And the same guest moves once there is a target that has it."""
    device = {"extra": ("-device", "virtio-rng-device")}
    with Vms(pair, guests.saved(LIGHT), at_source=device) as vms:
        move = Move(pair)
        move.wait_ends(Phase.ABORTED, Phase.ABORTED)
        assert "virtio-rng" in vms.target.stderr()
        assert move.failure(TARGET) is Reason.MISMATCH
        check_at_source(vms.source, vms.target)
        with vms.another_target(pair, **device) as target:
            Move(pair).wait_ends(Phase.RELEASED, Phase.RELEASED)
            check_at_target(vms.source, target)


# ------------------------------------------------------------------------------------- messages that are lost


def test_the_answer_to_accepted(pair: Pair, vms: Vms) -> None:
    """The source has heard it and says so to nobody: it hears it again."""
    scene = loading(pair, vms)
    pair.data.hold()
    pair.control.deaf = True
    scene.go()
    scene.move.wait_ends(Phase.POSTCOPY, Phase.POSTCOPY)
    pair.control.deaf = False
    pair.control.reset()
    pair.data.release()
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


def test_every_report_until_all_is_there(pair: Pair, vms: Vms) -> None:
    """COMMITTED tells that it was accepted, too. An operator's cancel comes too late, though nobody knows."""
    scene = loading(pair, vms)
    pair.control.hold()
    scene.go()
    scene.move.wait(TARGET, Phase.COMMITTED)
    assert scene.move.phase(SOURCE) is Phase.SWITCHOVER
    scene.move.cancel(SOURCE)
    assert scene.move.at(SOURCE).cancel_requested
    pair.control.release()
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


def test_the_stream_of_the_hand_over(pair: Pair, vms: Vms) -> None:
    """It is asked for again, and the guest is not stopped a second time."""
    scene = saving(pair, vms)
    pair.control.reset()
    scene.go()
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    assert vms.here.asked.count("pause") == 1
    check_at_target(vms.source, vms.target)


def test_the_report_of_aborted(pair: Pair, vms: Vms) -> None:
    """The source waits for it, and would for ever; it comes when the network does."""
    scene = loading(pair, vms)
    pair.control.hold()
    pair.data.hold()
    scene.move.cancel(TARGET)
    scene.move.wait(TARGET, Phase.ABORTED)
    scene.drop()
    assert scene.move.phase(SOURCE) is Phase.SWITCHOVER
    pair.control.release()
    pair.data.release()
    scene.move.wait(SOURCE, Phase.ABORTED)
    check_at_source(vms.source, vms.target)


def test_the_target_s_host_and_an_operator_vouches_for_that(pair: Pair, vms: Vms) -> None:
    """What it says afterwards changes nothing."""
    scene = loading(pair, vms)
    pair.control.hold()
    pair.data.hold()
    vms.target.kill()
    scene.move.wait(TARGET, Phase.ABORTED)
    scene.drop()
    scene.move.cancel(SOURCE, force_image=VM)
    scene.move.wait(SOURCE, Phase.ABORTED)
    check_at_source(vms.source, vms.target)
    pair.control.release()
    pair.data.release()


@pytest.mark.nightly
def test_the_target_asks_for_the_hand_over_and_never_again(pair: Pair, vms: Vms) -> None:
    """The guest does not stand still for a target that may be gone."""
    scene = saving(pair, vms)
    address, pair.control.target = pair.control.target, "127.0.0.1:1"
    pair.control.reset()
    scene.go()
    scene.move.wait(SOURCE, Phase.ABORTED)
    assert scene.move.failure(SOURCE) is Reason.GOING_AWAY
    check_at_source(vms.source, vms.target)
    pair.control.target = address
    scene.move.wait(TARGET, Phase.ABORTED)


# ------------------------------------------------------------------------------------------ a service of ours


@pytest.fixture
def own(guests: Guests) -> "Iterator[tuple[Pair, Vms]]":
    """A pair of this test's alone. Its fault client lives on, and holds no more afterwards."""
    with run_folder() as folder, Pair(folder) as pair:
        assert not pair.unended()
        with unchanged(pair.client.pid), Vms(pair, guests.saved(LIGHT)) as vms:
            yield pair, vms


@pytest.mark.parametrize("play", [precopy, saving, loading])
def test_the_fault_client_before_it_has_accepted(guests: Guests, play: Play) -> None:
    """The next one knows that its guest never came. It has no token to say so: whoever has it asks again."""
    with run_folder() as folder, Pair(folder) as pair:
        assert not pair.unended()
        with unchanged(pair.server.pid), Vms(pair, guests.saved(LIGHT)) as vms:
            scene = play(pair, vms)
            pair.client.end(signal.SIGKILL)
            pair.take_again()
            assert scene.move.phase(TARGET) is Phase.ABORTED
            if play is not saving:  # there the source gives up by itself after some seconds without a target
                assert scene.move.phase(SOURCE) not in ENDS
            scene.move.start()
            scene.move.wait(SOURCE, Phase.ABORTED)
            scene.drop()
            check_at_source(vms.source, vms.target)


@pytest.mark.parametrize("handed_over", [False, True])
def test_the_fault_client_while_the_command_watches(guests: Guests, handed_over: bool) -> None:
    """`faultclient migrate` has the token, and gives it to the next one."""
    with run_folder() as folder, Pair(folder) as pair, Vms(pair, guests.saved(LIGHT)) as vms:
        ends = (f"--source={pair.server.ready['control']}", f"--target={pair.client.ready['control']}")
        name = ("--session=commanded", f"--vm={VM}", f"--data-address={pair.data.address}")
        how = () if handed_over else ("--manual-switchover",)
        gate = vms.there.before("load_state")
        with Process(command("faultclient", "migrate", *ends, *name, *how), folder=folder) as migrate:
            move = Session(pair, "commanded")
            if handed_over:
                gate.wait()
            else:
                migrate.wait_log("source  PRECOPY")
            pair.client.end(signal.SIGKILL)
            pair.take_again()
            move.wait(SOURCE, Phase.ABORTED)
            gate.drop()
            assert migrate.wait() == ROWS[Reason.GOING_AWAY].exit
        check_at_source(vms.source, vms.target)


def test_the_fault_client_with_pages_missing(guests: Guests) -> None:
    """Nobody can serve the guest any more. Operators end it at both ends; its VM's name is free then."""
    with run_folder() as folder, Pair(folder) as pair:
        assert not pair.unended()
        with unchanged(pair.server.pid), Vms(pair, guests.saved(LIGHT)) as vms:
            scene = arriving(pair, vms)
            pair.client.end(signal.SIGKILL)
            pair.take_again()
            assert scene.move.phase(TARGET) is Phase.POSTCOPY
            scene.go()
            with pytest.raises(grpc.RpcError) as refused:
                scene.move.cancel(TARGET)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            scene.move.cancel(TARGET, force_image=VM)
            scene.move.release(force_image=VM)
            scene.move.wait_ends(Phase.LOST, Phase.LOST)
            assert not pair.unended()
            vms.wait_killed(vms.source)


def kill_server(pair: Pair) -> None:
    pair.server.end(signal.SIGKILL)


def test_the_page_server_in_precopy(own: tuple[Pair, Vms]) -> None:
    """The guest runs on, and nobody there knows what it writes any more."""
    pair, vms = own
    move = Move(pair, postcopy="forbid", progress_timeout_s=1, max_downtime_ms=1)
    move.wait_for(TARGET, lambda told: told.round > 1, "in its second round")
    kill_server(pair)
    move.wait(TARGET, Phase.ABORTED)
    check_at_source(vms.source, vms.target)
    pair.serve_again()
    move.wait(SOURCE, Phase.ABORTED)
    check_at_source(vms.source, vms.target)


def test_the_page_server_while_the_guest_stands_still(own: tuple[Pair, Vms]) -> None:
    """The next one lets it run: nothing of it has left."""
    pair, vms = own
    scene = saving(pair, vms)
    kill_server(pair)
    scene.drop()
    pair.serve_again()
    scene.move.wait_ends(Phase.ABORTED, Phase.ABORTED)
    check_at_source(vms.source, vms.target)


def test_the_page_server_after_the_hand_over(own: tuple[Pair, Vms]) -> None:
    """The next one lets the guest stand still: only the target's word makes it run again."""
    pair, vms = own
    scene = loading(pair, vms)
    kill_server(pair)
    pair.serve_again()
    assert scene.move.phase(SOURCE) is Phase.SWITCHOVER
    beats = len(vms.source.console.beats)
    scene.move.cancel(TARGET)
    scene.move.wait(TARGET, Phase.ABORTED)
    assert len(vms.source.console.beats) == beats
    scene.drop()
    scene.move.wait(SOURCE, Phase.ABORTED)
    check_at_source(vms.source, vms.target)


def test_the_page_server_with_pages_missing(own: tuple[Pair, Vms]) -> None:
    """No error ends the session: the guest waits, and both ends say why. Operators end it."""
    pair, vms = own
    scene = loading(pair, vms, postcopy="at-once")
    pair.data.hold()
    kill_server(pair)
    pair.serve_again()
    pair.data.release()
    scene.go()
    scene.move.wait_ends(Phase.POSTCOPY, Phase.POSTCOPY)
    scene.move.wait_for(TARGET, lambda told: told.paused != 0, "paused")
    assert scene.move.at(SOURCE).paused
    scene.move.release(force_image=VM)
    scene.move.wait(SOURCE, Phase.LOST)
    vms.target.kill()
    scene.move.wait(TARGET, Phase.RELEASED)
    assert scene.move.failure(TARGET) is Reason.NO_VMM


def test_the_page_server_is_told_to_end_again_and_again(own: tuple[Pair, Vms]) -> None:
    """A guest that is handed over needs it: no signal but SIGKILL is stronger."""
    pair, vms = own
    scene = arriving(pair, vms)
    pair.server.kick(signal.SIGTERM)
    pair.server.wait_log("end_waits")
    for _ in range(2):
        pair.server.kick(signal.SIGTERM)
        assert scene.move.phase(SOURCE) is Phase.POSTCOPY
    scene.go()
    assert pair.server.wait() == 0
    scene.move.wait(TARGET, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


def test_precopy_is_not_lost_with_a_connection(pair: Pair, vms: Vms) -> None:
    scene = precopy(pair, vms)
    pair.data.reset()
    pair.control.reset()
    scene.go()
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)

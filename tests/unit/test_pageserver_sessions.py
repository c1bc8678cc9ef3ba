# SPDX-License-Identifier: Apache-2.0
"""Sessions that are made at the same time: a VMM that does not answer holds up its own alone."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from tests.support.fake_source import TERMS, FakeVm, Script, Source, created, play

OTHER = "web-2"


@contextmanager
def another_vm(made: Source) -> Iterator[Script]:
    """Which does not answer its adapter until it is let go."""
    script = Script()
    script.hold("attach")
    vm = FakeVm(script, made.process, name=OTHER)
    made.vms.all[OTHER] = vm
    yield script
    vm.close()


def test_a_vmm_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        with another_vm(made) as other:
            terms = replace(TERMS, session="slow", image=OTHER)
            hanging = asyncio.create_task(created(made, terms))
            while other.done != ["attach"]:
                await asyncio.sleep(0)
            session = await created(made)
            assert await created(made) is session
            repeated = asyncio.create_task(created(made, terms))
            await asyncio.sleep(0)
            other.let_go("attach")
            assert await hanging is await repeated
            assert other.done == ["attach"], "it was looked at once"

    play(tmp_path, test)


def test_a_name_that_another_image_has_got_meanwhile(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        with another_vm(made) as other:
            hanging = asyncio.create_task(created(made, replace(TERMS, image=OTHER)))
            while other.done != ["attach"]:
                await asyncio.sleep(0)
            session = await created(made)
            other.let_go("attach")
            with pytest.raises(PageferryError) as caught:
                await hanging
            assert caught.value.reason is Reason.ALREADY_ATTACHED
            assert other.done == ["attach", "close"]
            assert [one.image for one in made.sessions] == [session.image]

    play(tmp_path, test)


def test_two_sessions_of_one_image(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        made.script.hold("attach")
        first = asyncio.create_task(created(made))
        second = asyncio.create_task(created(made, replace(TERMS, session="second")))
        while "attach" not in made.done:
            await asyncio.sleep(0)
        made.script.let_go("attach")
        assert (await first).phase is Phase.CREATED
        with pytest.raises(PageferryError) as caught:
            await second
        assert caught.value.reason is Reason.ALREADY_ATTACHED
        assert made.done.count("attach") == 1

    play(tmp_path, test)


def test_none_is_made_once_the_server_is_ending(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        made.script.hold("attach")
        making = asyncio.create_task(created(made))
        while "attach" not in made.done:
            await asyncio.sleep(0)
        await made.sessions.give_up()
        made.script.let_go("attach")
        with pytest.raises(PageferryError) as caught:
            await making
        assert caught.value.reason is Reason.GOING_AWAY
        assert made.done == ["attach", "close"]

    play(tmp_path, test)


def test_a_vmm_that_exits_while_it_is_looked_at(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        made.script.hold("attach")
        making = asyncio.create_task(created(made))
        while "attach" not in made.done:
            await asyncio.sleep(0)
        made.process.end()
        made.sessions.vmm_gone(made.vm)
        made.vm.close()
        made.script.let_go("attach")
        with pytest.raises(PageferryError, match="has exited") as caught:
            await making
        assert caught.value.reason is Reason.NO_VMM
        assert made.done[-1] == "close"

    play(tmp_path, test)

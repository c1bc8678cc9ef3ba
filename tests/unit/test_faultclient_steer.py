# SPDX-License-Identifier: Apache-2.0
"""`faultclient switch-over`, `cancel` and `release`: which end is asked what, and what is shown of it."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from faultclient.cli import cli
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from tests.support.fake_ends import Ends


def asked(folder: Path, words: str, phase: Phase = Phase.PRECOPY) -> tuple[Result, Ends]:
    """One command line. SOURCE and TARGET stand for the addresses of two ends that have a session."""

    async def run() -> tuple[Result, Ends]:
        ends = Ends(folder)
        for end in (ends.source, ends.target):
            await end.up()
            end.begin("move-1", "web-1")
            end.change(phase=int(phase))
        line = words.replace("SOURCE", ends.source.address).replace("TARGET", ends.target.address).split()
        try:
            return await asyncio.to_thread(CliRunner().invoke, cli, line), ends
        finally:
            for end in (ends.source, ends.target):
                await end.down()

    return asyncio.run(run())


def test_the_target_hands_over_when_it_is_told_to(tmp_path: Path) -> None:
    result, ends = asked(tmp_path, "switch-over move-1 --target TARGET")
    assert result.exit_code == 0, result.output
    assert ends.story == ["target SwitchOver"]
    assert result.output.split()[:2] == ["target", "SWITCHOVER"]


def test_the_target_is_asked_to_cancel(tmp_path: Path) -> None:
    result, ends = asked(tmp_path, "cancel move-1 --target TARGET")
    assert ends.story == ["target CancelSession"]
    assert result.output.split()[:3] == ["target", "ABORTED", "CANCELLED"]


def test_the_source_is_asked_in_its_place_with_the_image_s_name(tmp_path: Path) -> None:
    result, ends = asked(tmp_path, "cancel move-1 --source SOURCE --force-image web-1")
    assert ends.story == ["source CancelSession"]
    assert ends.source.requests["CancelSession"].force_image == "web-1"
    assert result.output.split()[:2] == ["source", "ABORTED"]


def test_the_target_hears_the_image_s_name_too(tmp_path: Path) -> None:
    """Of a guest that it does not serve any more."""
    _, ends = asked(tmp_path, "cancel move-1 --target TARGET --force-image web-1")
    assert ends.story == ["target CancelSession"]
    assert ends.target.requests["CancelSession"].force_image == "web-1"


def test_a_held_source_is_released(tmp_path: Path) -> None:
    result, ends = asked(tmp_path, "release move-1 --source SOURCE", Phase.COMMITTED)
    assert ends.story == ["source ReleaseSession"]
    assert result.output.split() == ["source", "RELEASED"]


@pytest.mark.parametrize("words", ["cancel move-1 --target TARGET", "cancel move-1 --source SOURCE"])
def test_a_refusal_is_the_end_s_own(tmp_path: Path, words: str) -> None:
    result, _ = asked(tmp_path, words, Phase.POSTCOPY)
    assert isinstance(result.exception, PageferryError)
    assert result.exception.reason is Reason.WRONG_PHASE


def test_nobody_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["switch-over", "move-1", "--target", f"unix:{tmp_path}/nobody"])
    assert isinstance(result.exception, PageferryError)
    assert result.exception.reason is Reason.GOING_AWAY

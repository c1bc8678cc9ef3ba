# SPDX-License-Identifier: Apache-2.0
"""Every option of both console scripts can be given in the environment under its flag's name."""

from collections.abc import Iterator

import click
import pytest

from faultclient.cli import cli as faultclient
from pageserver.cli import cli as pageserver


def options() -> Iterator[tuple[str, click.Option]]:
    for group in (pageserver, faultclient):
        prefix = group.context_settings["auto_envvar_prefix"]
        for name, command in group.commands.items():
            for param in command.params:
                if isinstance(param, click.Option):
                    yield f"{prefix}_{name.upper().replace('-', '_')}", param


@pytest.mark.parametrize(
    ("prefix", "option"), [pytest.param(*one, id=f"{one[0]}{one[1].opts[0]}") for one in options()]
)
def test_the_variable_has_the_flag_s_name(prefix: str, option: click.Option) -> None:
    flag = option.opts[0].removeprefix("--").replace("-", "_").upper()
    context = click.Context(click.Command("any"), auto_envvar_prefix=prefix)
    assert option.name is not None
    made = option.envvar or f"{context.auto_envvar_prefix}_{option.name.upper()}"
    assert made == f"{prefix}_{flag}"

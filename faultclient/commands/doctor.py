# SPDX-License-Identifier: Apache-2.0
"""`faultclient doctor`: what this kernel, this user and this container can do for VMs, each fact tried."""

import json
import os
from collections.abc import Sequence
from typing import Any, Final

import click

from pageferry.service.abilities import fact, refusal
from pageferry.service.native import Fact, Verdict, probe

COLOURS: Final = {
    Verdict.GOOD: "green",
    Verdict.LESS: "yellow",
    Verdict.BAD: "red",
    Verdict.UNTRIED: "bright_black",
    Verdict.FAILED: "red",
}
NO_DEVICE: Final = -1


def doctor(device_fd: int = NO_DEVICE, *, as_json: bool) -> None:
    """PageferryError, after what was found: no VM can be served."""
    facts = probe(device_fd, spare_pools=False)
    usable = fact("usable", facts).verdict in (Verdict.GOOD, Verdict.LESS)
    if as_json:
        click.echo(json.dumps(as_object(facts, usable=usable)))
    else:
        for line in as_lines(facts):
            click.echo(line)
    if not usable:
        raise refusal(facts)


def as_object(facts: Sequence[Fact], *, usable: bool) -> dict[str, Any]:
    return {
        "usable": usable,
        "kernel": os.uname().release,
        "uid": os.geteuid(),
        "facts": [
            {
                "name": one.name,
                "verdict": one.verdict.name,
                "found": one.found,
                "remedy": one.remedy,
                "help": one.help,
            }
            for one in facts
        ],
    }


def as_lines(facts: Sequence[Fact]) -> list[str]:
    """A line each: the verdict, whose it is, what was found, and what to do about it."""
    width = max(len(one.name) for one in facts)
    return [
        click.style(f"{one.verdict.name.lower():9}", COLOURS[one.verdict])
        + f"{one.name:{width}}  {one.found}"
        + (click.style(f"  -> {one.remedy}", "bright_black") if one.remedy else "")
        for one in facts
    ]

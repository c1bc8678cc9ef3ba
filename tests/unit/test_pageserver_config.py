# SPDX-License-Identifier: Apache-2.0
"""Options of `pageserver serve`: defaults from limits.py, environment, usage errors, a help that teaches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pageferry import limits
from pageferry.limits import PAGE_BYTES
from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.ready import Ready
from pageserver import cli
from pageserver.config import ServeOptions
from pageserver.images import ImageFile
from tests.support.processes import finished


class Seen:
    """What would have been served, in place of serving it."""

    def __init__(self) -> None:
        self.images: list[ImageFile] = []
        self.options: ServeOptions | None = None

    def __call__(self, images: list[ImageFile], options: ServeOptions) -> None:
        self.images, self.options = list(images), options


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(cli, "serve_opened", seen)
    return seen


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(8 * PAGE_BYTES)
    return path


def run(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.cli, list(map(str, arguments)), env=env, auto_envvar_prefix="PAGESERVER")


def serve(*arguments: object, env: Mapping[str, str] | None = None) -> Any:
    result = run("serve", *arguments, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_defaults_are_those_of_limits(seen: Seen, ram: Path) -> None:
    assert serve("--image", f"a={ram}").exit_code == 0
    assert seen.options == ServeOptions(
        data_listen=Address.parse(limits.DEFAULT_SERVER_DATA_ADDRESS),
        control_listen=Address.parse(limits.DEFAULT_SERVER_CONTROL_ADDRESS),
        metrics_listen=None,
        threads=limits.DEFAULT_SERVER_THREADS,
        drain_timeout_s=limits.DRAIN_TIMEOUT_MS / 1000,
        ready=Ready(),
        progress=False,
    )
    assert [(image.name, image.region_pages) for image in seen.images] == [("a", (8,))]


def test_every_option(seen: Seen, ram: Path, tmp_path: Path) -> None:
    arguments = ["--image", f"a={ram}", "--image", f"b={ram}", "--regions", "b=3,20K"]
    arguments += [
        "--data-listen",
        "[::1]:0",
        "--control-listen",
        "unix:/run/c",
        "--metrics-listen",
        "0.0.0.0:1",
    ]
    arguments += [
        "--threads",
        "4",
        "--drain-timeout",
        "0.5",
        "--ready-file",
        f"{tmp_path}/r",
        "--ready-fd",
        "9",
    ]
    assert serve(*arguments, "--log-format", "json", "--log-level", "debug").exit_code == 0
    assert seen.options == ServeOptions(
        data_listen=Address("::1", 0),
        control_listen=Address(path=Path("/run/c")),
        metrics_listen=Address("0.0.0.0", 1),
        threads=4,
        drain_timeout_s=0.5,
        ready=Ready(tmp_path / "r", 9),
        progress=False,
    )
    assert [(image.name, image.region_pages) for image in seen.images] == [("a", (8,)), ("b", (3, 5))]


def test_the_environment_and_a_flag_that_wins(seen: Seen, ram: Path) -> None:
    env = {
        "PAGESERVER_SERVE_IMAGE": f"a={ram} b={ram}",
        "PAGESERVER_SERVE_REGIONS": "a=4,4",
        "PAGESERVER_SERVE_DATA_LISTEN": "127.0.0.1:1",
        "PAGESERVER_SERVE_THREADS": "3",
        "PAGESERVER_SERVE_DRAIN_TIMEOUT": "7",
    }
    assert serve("--threads", "2", env=env).exit_code == 0
    assert seen.options is not None
    assert [(image.name, image.region_pages) for image in seen.images] == [("a", (4, 4)), ("b", (8,))]
    assert (str(seen.options.data_listen), seen.options.threads) == ("127.0.0.1:1", 2)
    assert seen.options.drain_timeout_s == 7


USAGE_ERRORS: Sequence[tuple[list[str], str]] = [
    ([], "--image"),
    (["--image", "ram"], "NAME=PATH"),
    (["--image", "a=/x", "--image", "a=/y"], "named 'a'"),
    (["--image", "a=/x", "--regions", "b=1"], "give --image b=PATH"),
    (["--image", "a=/x", "--regions", "a=1", "--regions", "a=2"], "twice"),
    (["--image", "a=/x", "--regions", "a=many"], "no size"),
    (["--image", "a=/x", "--data-listen", "7850"], "HOST:PORT"),
    (["--image", "a=/x", "--control-listen", "unix:relative"], "absolute"),
    (["--image", "a=/x", "--metrics-listen", "host:99999"], "HOST:PORT"),
    (["--image", "a=/x", "--threads", "0"], "1<=x<=64"),
    (["--image", "a=/x", "--threads", "many"], "integer"),
    (["--image", "a=/x", "--drain-timeout", "-1"], "x>=0"),
    (["--image", "a=/x", "--log-format", "xml"], "json"),
    (["--image", "a=/x", "--no-such-option"], "No such option"),
    (["--image", "a=/x", "surplus"], "unexpected"),
]


@pytest.mark.parametrize(("arguments", "says"), USAGE_ERRORS)
def test_a_bad_command_line_says_what_to_give(arguments: list[str], says: str, seen: Seen) -> None:
    result = run("serve", *arguments)
    assert isinstance(result.exception, SystemExit)
    assert says in result.output
    assert seen.options is None


@pytest.mark.parametrize("option", ["--data-listen", "--control-listen"])
def test_the_network_is_served_only_on_demand(
    option: str, seen: Seen, ram: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--image", f"a={ram}", option, "0.0.0.0:7850")
    with pytest.raises(PageferryError) as caught:
        serve(*arguments)
    assert caught.value.reason is Reason.NOT_ALLOWED
    assert "--insecure-network" in caught.value.remedy
    assert seen.options is None
    result = serve(*arguments, "--insecure-network")
    assert result.exit_code == 0
    assert "insecure_network" in result.output
    assert seen.options is not None


def test_help_teaches() -> None:
    for words in (("--help",), ("serve", "--help"), ("inspect", "-h")):
        assert run(*words).exit_code == 0
    helped = run("serve", "--help", env={"COLUMNS": "120"}).output
    for example in (
        "--image web-1=/images/web-1.ram",
        "--regions db-1=3G,5G",
        "--ready-file",
        "PAGESERVER_SERVE_",
    ):
        assert example in helped
    serve_command = cli.cli.commands["serve"]
    for option in serve_command.params:
        assert isinstance(option, click.Option)
        assert option.help, option.name
    assert "Exit codes" in run("--help").output


def test_usage_is_64_from_the_console_script() -> None:
    ended = finished("pageserver", "serve", "--image", "a")
    assert (ended.status, ended.output) == (64, "")
    assert "NAME=PATH" in ended.log
    assert finished("pageserver", "nonsense").status == 64
    assert finished("pageserver", "--version").status == 0

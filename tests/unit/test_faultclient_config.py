# SPDX-License-Identifier: Apache-2.0
"""Options of `faultclient run`: defaults from limits.py, environment, usage errors, what is printed."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from faultclient import cli, worker
from faultclient.config import DEFAULT_ATTACH_TIMEOUT_S, RunOptions
from faultclient.session import Postcopy
from faultclient.worker import Outcome
from pageferry import limits
from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.ready import Ready
from tests.support.processes import finished

NEEDED = {"--socket": "/run/handoff.sock", "--data-address": "10.0.0.1:7850", "--image": "web-1"}


class Seen:
    """What would have been run, in place of running it."""

    def __init__(self) -> None:
        self.options: RunOptions | None = None
        self.outcome = Outcome({"phase": "RELEASED", "faults_total": 3}, None)

    async def __call__(self, options: RunOptions) -> Outcome:
        self.options = options
        return self.outcome


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(worker, "run", seen)
    return seen


def invoke(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.cli, arguments, env=env, auto_envvar_prefix="FAULTCLIENT")


def run(*arguments: str, without: str = "", env: Mapping[str, str] | None = None) -> Result:
    given = [f"{name}={value}" for name, value in NEEDED.items() if name != without]
    result = invoke("run", *given, *arguments, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def options(seen: Seen) -> RunOptions:
    assert seen.options is not None
    return seen.options


# ---------------------------------------------------------------------------------------------------- options


def test_defaults(seen: Seen) -> None:
    assert run().exit_code == 0
    assert options(seen) == RunOptions(
        socket=Path("/run/handoff.sock"),
        data_address="10.0.0.1:7850",
        image="web-1",
        session="restore",
        postcopy=Postcopy.AT_ONCE,
        background=True,
        spin_us=limits.DEFAULT_SPIN_US,
        collapse=False,
        vmm_uid=None,
        handoff_timeout_s=None,
        attach_timeout_s=DEFAULT_ATTACH_TIMEOUT_S,
        control_listen=Address.parse(limits.DEFAULT_CLIENT_CONTROL_ADDRESS),
        metrics_listen=None,
        ready=Ready(),
        progress=False,
    )


def test_all_of_them(seen: Seen, tmp_path: Path) -> None:
    result = run(
        "--session=web-1-a",
        "--postcopy=forbid",
        "--spin-us=50",
        "--vmm-uid=123",
        "--handoff-timeout=2.5",
        "--attach-timeout=7",
        "--control-listen=unix:/run/control.sock",
        "--metrics-listen=0.0.0.0:0",  # no guest memory there: no consent needed
        f"--ready-file={tmp_path}/ready",
        "--log-format=text",
        "--log-level=warning",
    )
    assert result.exit_code == 0
    found = options(seen)
    assert found.session == "web-1-a"
    assert found.postcopy is Postcopy.FORBID
    assert (found.spin_us, found.vmm_uid) == (50, 123)
    assert (found.handoff_timeout_s, found.attach_timeout_s) == (2.5, 7.0)
    assert found.control_listen == Address(path=Path("/run/control.sock"))
    assert found.metrics_listen == Address("0.0.0.0", 0)
    assert found.ready == Ready(tmp_path / "ready")


def test_each_can_come_from_the_environment_and_a_flag_wins(seen: Seen) -> None:
    given = {
        "FAULTCLIENT_RUN_DATA_ADDRESS": "dns:///pages.example:7850",
        "FAULTCLIENT_RUN_BACKGROUND": "0",
        "FAULTCLIENT_RUN_SESSION": "lost",
        "FAULTCLIENT_RUN_SPIN_US": "20",
    }
    run("--session=found", without="--data-address", env=given)
    assert options(seen).data_address == "dns:///pages.example:7850"
    assert not options(seen).background
    assert options(seen).session == "found"
    assert options(seen).spin_us == 20


@pytest.mark.parametrize(
    "address", ["10.0.0.1:7850", "[::1]:7850", "dns:///pages:7850", "unix:/run/data.sock"]
)
def test_data_addresses(seen: Seen, address: str) -> None:
    run(f"--data-address={address}", without="--data-address")
    assert options(seen).data_address == address


@pytest.mark.parametrize("missing", NEEDED)
def test_what_must_be_given(seen: Seen, missing: str) -> None:
    result = run(without=missing)
    assert result.exit_code != 0
    assert f"Missing option '{missing}'" in result.output
    assert seen.options is None


@pytest.mark.parametrize(
    "wrong, says",
    [
        ("--data-address=nowhere", "'nowhere' is no address"),
        ("--data-address=10.0.0.1:0", "has no port"),
        ("--data-address=10.0.0.1:99999", "is no address"),
        ("--data-address=unix:data.sock", "no absolute path"),
        ("--image=", "1 to 128 bytes"),
        ("--image=" + "a" * 129, "1 to 128 bytes"),
        ("--image=a\nb", "printable"),
        ("--session=", "1 to 63"),
        ("--session=Web_1", "a-z, 0-9"),
        ("--session=" + "a" * 64, "1 to 63"),
        ("--postcopy=later", "'later' is not one of"),
        ("--spin-us=-1", "not in the range"),
        ("--vmm-uid=-1", "not in the range"),
        ("--vmm-uid=root", "not a valid integer"),
        ("--handoff-timeout=0", "not in the range"),
        ("--attach-timeout=inf", "not in the range"),
        ("--attach-timeout=nan", "is no number"),
        ("--control-listen=7861", "is no address"),
        ("--metrics-listen=unix:m", "no absolute path"),
        ("--unknown", "No such option"),
    ],
)
def test_usage_errors(seen: Seen, wrong: str, says: str) -> None:
    result = run(wrong)
    assert result.exit_code != 0
    assert says in result.output
    assert seen.options is None


def test_nobody_would_ever_ask_for_the_pages(seen: Seen) -> None:
    result = run("--postcopy=forbid", "--no-background")
    assert result.exit_code != 0
    assert "never ends without --background" in result.output


def test_other_hosts_reach_the_control_port_only_by_consent(seen: Seen) -> None:
    with pytest.raises(PageferryError, match="--insecure-network"):
        run("--control-listen=0.0.0.0:7861")
    assert seen.options is None
    assert run("--control-listen=0.0.0.0:7861", "--insecure-network").exit_code == 0


# ---------------------------------------------------------------------------------------------------- the end


def test_figures_are_printed_when_asked_for(seen: Seen) -> None:
    assert run().stdout == ""
    assert json.loads(run("--json").stdout) == {"phase": "RELEASED", "faults_total": 3}


def test_a_failed_run_prints_its_figures_too(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    seen.outcome = Outcome({"reason": "NO_VMM"}, PageferryError(Reason.NO_VMM, "the VMM has exited"))
    given = [f"{name}={value}" for name, value in NEEDED.items()]
    result = invoke("run", *given, "--json")
    assert json.loads(result.stdout) == {"reason": "NO_VMM"}
    assert isinstance(result.exception, PageferryError)
    assert result.exception.exit_code == 69


# -------------------------------------------------------------------------------------------------- processes


def test_usage_is_exit_code_64() -> None:
    for arguments in (["run"], ["status", "--address=nowhere"], ["walk"]):
        ended = finished("faultclient", *arguments)
        assert ended.status == 64
        assert "Usage:" in ended.log
        assert "Traceback" not in ended.log


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["status", "-h"]])
def test_help(arguments: list[str]) -> None:
    ended = finished("faultclient", *arguments)
    assert ended.status == 0
    assert "Usage: faultclient" in ended.output


def test_help_names_every_exit_code_and_default() -> None:
    assert all(str(code) in invoke("--help").output for code in (64, 65, 69, 70, 71, 73, 75))
    text = invoke("run", "--help").output
    assert limits.DEFAULT_CLIENT_CONTROL_ADDRESS in text
    assert "FAULTCLIENT_RUN_" in text


def test_version() -> None:
    assert finished("faultclient", "--version").output.startswith("faultclient, version ")


def test_the_module_that_starts_pagers_loads_no_grpc() -> None:
    """A restarted client serves its first fault before it spends half a second on imports."""
    for module in ("faultclient.vms", "faultclient.worker", "pageferry.host.listener"):
        program = f"import sys, {module}; print(*sorted(sys.modules))"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        loaded: Any = ended.stdout.split()
        assert module in loaded
        assert not [name for name in loaded if name.split(".")[0] in ("grpc", "google", "grpc_health")]

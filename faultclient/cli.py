# SPDX-License-Identifier: Apache-2.0
"""`faultclient`: names its commands, and loads one only when it is called."""

import sys
from typing import Any

import click

from faultclient.config import allowed_uids, run_options
from pageferry import __version__
from pageferry.limits import DEFAULT_CLIENT_CONTROL_ADDRESS
from pageferry.reasons import PageferryError
from pageferry.service.addresses import insecure_option, local_or_agreed
from pageferry.service.logs import configure_logging, log, log_options


@click.group(context_settings={"auto_envvar_prefix": "FAULTCLIENT", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Makes each page of a VM right at the moment the guest touches it."""


@cli.command()
@run_options
@click.option(
    "--json", "as_json", is_flag=True, help="Print the figures of the run as one JSON line at its end."
)
@insecure_option
@log_options
def run(as_json: bool, insecure_network: bool, log_format: str, log_level: str, **options: Any) -> None:
    """Take one VM's memory over, and serve its page faults until every page is here.

    Waits on --socket for a hand-off (Firecracker's snapshot load with a Uffd backend, or a VMM with the
    shim), lets the guest run at once, and ends with exit code 0 when nobody needs it any more.

    \b
      faultclient run --socket /run/pageferry/handoff.sock \\
          --data-address 10.0.0.1:7850 --image web-1
    """
    configure_logging(log_format, log_level)
    import uvloop

    from faultclient.session import Postcopy
    from faultclient.worker import RunOptions
    from faultclient.worker import run as run_worker

    options["postcopy"] = Postcopy(options["postcopy"])
    options["vmm_uids"] = allowed_uids(options["vmm_uids"])
    for name in ("control_listen", "metrics_listen"):
        if options[name] is not None:
            options[name] = local_or_agreed(options[name], insecure_network=insecure_network)
    outcome = uvloop.run(run_worker(RunOptions(progress=sys.stderr.isatty(), **options)))
    if as_json:
        click.echo(outcome.as_json())


@cli.command()
@click.option(
    "--address",
    default=DEFAULT_CLIENT_CONTROL_ADDRESS,
    show_default=True,
    metavar="ADDRESS",
    help="Control port of a fault client: HOST:PORT or unix:/PATH.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a session, one a line.")
def status(address: str, as_json: bool) -> None:
    """Show the sessions of a running fault client."""
    from faultclient.commands.show import show

    show(address, as_json=as_json)


def main() -> None:
    """The console script: a refusal of ours is one line and an exit code, never a traceback."""
    try:
        cli()
    except PageferryError as error:
        log.error("refused", reason=error.reason.name, text=error.message, remedy=error.remedy)
        sys.exit(error.exit_code)

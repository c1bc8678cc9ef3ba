# SPDX-License-Identifier: Apache-2.0
"""`faultclient`: names its commands, and loads one only when it is called."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from faultclient.config import RunOptions, run_options
from faultclient.migrate_config import MigrateOptions, migrate_options
from faultclient.poison_cli import poison
from faultclient.serve_config import ServeOptions, serve_options
from faultclient.session import Postcopy
from pageferry import __version__
from pageferry.limits import DEFAULT_CLIENT_CONTROL_ADDRESS, DEFAULT_SERVER_CONTROL_ADDRESS
from pageferry.service.addresses import Address, AddressType, insecure_option, local_or_agreed
from pageferry.service.entry import run_command
from pageferry.service.logs import configure_logging, log, log_options
from pageferry.service.ready import Ready, ready_options


@click.group(context_settings={"auto_envvar_prefix": "FAULTCLIENT", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Makes each page of a VM right at the moment the guest touches it.

    \b
    Exit codes: 0 every page is here, 64 usage, 65 data that does not fit, 69 the page server or the
    VMM is not there, or an address is taken, 70 a bug of ours, 71 a right or a feature is missing,
    73 no memory, 75 given up by a signal or a timeout.
    """


@cli.command(short_help="Take one VM over and serve its page faults.")
@run_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FAULTCLIENT_RUN_JSON",
    help="Print the figures of the run as one JSON line on stdout at its end.",
)
@insecure_option
@ready_options
@log_options
def run(
    as_json: bool,
    insecure_network: bool,
    log_format: str,
    log_level: str,
    ready_file: Path | None,
    ready_fd: int | None,
    **given: Any,
) -> None:
    """Take one VM's memory over, and serve its page faults until every page is here.

    Waits on --socket for a hand-off (Firecracker's snapshot load with a Uffd backend, or a VMM with the
    shim), lets the guest run at once, and ends with exit code 0 once every page is the guest's.

    SIGTERM or Ctrl-C gives up as long as the guest may not run yet. After that it is ignored, and the log
    says so: without its pages the guest would stand still for ever. SIGUSR2 writes the pager's last steps
    to the log.

    \b
      faultclient run --socket /run/pageferry/handoff.sock \\
          --data-address 10.0.0.1:7850 --image web-1

    \b
    For a script, with the figures of the run in a file:
      faultclient run --socket /run/pageferry/handoff.sock \\
          --data-address unix:/run/pageserver/data.sock --image web-1 \\
          --handoff-timeout 60 --ready-file /run/pageferry/ready.json --json > figures.json

    Every option can be set in the environment: FAULTCLIENT_RUN_ and its name, as in
    FAULTCLIENT_RUN_DATA_ADDRESS=10.0.0.1:7850.
    """
    configure_logging(log_format, log_level)
    given["postcopy"] = Postcopy(given["postcopy"])
    if given["postcopy"] is Postcopy.FORBID and not given["background"]:
        raise click.UsageError("--postcopy forbid never ends without --background: nobody asks for pages.")
    agreed(given["control_listen"], insecure_network=insecure_network)
    options = RunOptions(
        ready=Ready(ready_file, ready_fd),
        progress=sys.stderr.isatty(),
        handoff_timeout_s=given.pop("handoff_timeout"),
        attach_timeout_s=given.pop("attach_timeout"),
        **given,
    )

    import uvloop

    from faultclient.worker import run as run_worker

    outcome = uvloop.run(run_worker(options))
    if as_json:
        click.echo(outcome.as_json())
    if outcome.error is not None:
        raise outcome.error


@cli.command(short_help="Take VMs over as somebody asks for it, many of them.")
@serve_options
@insecure_option
@ready_options
@log_options
def serve(
    insecure_network: bool,
    log_format: str,
    log_level: str,
    ready_file: Path | None,
    ready_fd: int | None,
    **given: Any,
) -> None:
    """Wait for VMs and for sessions that move a guest into them.

    Each --vm names a VM that waits for its guest here (QEMU: -incoming defer, under the shim) and who stops,
    loads and resumes it. `faultclient migrate`, or an orchestrator through FaultClientService, starts a
    session; hand-offs may come before or after.

    SIGTERM: no more sessions. What was not accepted is given up, its source goes on; the process ends when
    the last guest that needs it has all its pages. SIGUSR2 writes the pagers' last steps to the log.

    \b
      faultclient serve --vm web-1,handoff=/run/web-1.sock,qemu=/run/web-1.qmp

    Every option can be set in the environment: FAULTCLIENT_SERVE_ and its name, as in
    FAULTCLIENT_SERVE_STATE_DIR=/var/lib/pageferry.
    """
    configure_logging(log_format, log_level)
    agreed(given["control_listen"], insecure_network=insecure_network)
    given["vms"] = given.pop("vm")
    options = ServeOptions(ready=Ready(ready_file, ready_fd), **given)

    import uvloop

    from faultclient.serve import serve as run_serve

    uvloop.run(run_serve(options))


def agreed(control: Address, *, insecure_network: bool) -> None:
    """PageferryError: others could reach the control port, and nobody has said that they may."""
    if not local_or_agreed(control, insecure_network=insecure_network).local:
        log.warning(
            "insecure_network", port="control_listen", address=str(control), because="there is no TLS yet"
        )


@cli.command(short_help="Move a running guest here or there, and watch it move.")
@migrate_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FAULTCLIENT_MIGRATE_JSON",
    help="Each change as a JSON object, one a line, on stdout; the figures in the last one.",
)
def migrate(as_json: bool, **given: Any) -> None:
    """Move a running guest from a page server to a fault client: both are told, and watched to the end.

    The move goes on by itself: this command may be killed, and called again with the same --session.
    Ctrl-C asks to cancel; the guest then runs on at the source, unless it is accepted at the target already.

    \b
      faultclient migrate --source 10.0.0.1:7851 --target 10.0.0.2:7861 \\
          --data-address 10.0.0.1:7850 --vm web-1 --report move.html

    A live picture on a terminal, else a line for each change, on stderr; the figures on stdout.

    Exit code 0: the guest runs at the target, all its memory is there, and the source may go.
    """
    import uvloop

    from faultclient.commands.live import LiveView
    from faultclient.commands.migrate import migrate as run_migrate
    from faultclient.commands.views import JsonLines, TextLines

    view = JsonLines() if as_json else LiveView() if sys.stderr.isatty() else TextLines()
    error = uvloop.run(run_migrate(MigrateOptions.of(given), view))
    if error is not None:
        raise error


def side_option(side: str, who: str, default: str | None, says: str) -> Callable[[Any], Any]:
    """Where one end of a move is asked."""
    return click.option(
        f"--{side}",
        type=AddressType(),
        default=default,
        show_default=default is not None,
        metavar="ADDRESS",
        help=f"Control port of the {who}{says}.",
    )


force_option = click.option(
    "--force-image",
    default="",
    metavar="IMAGE",
    help="The image's name, typed, to vouch for what cannot be seen from there. It is written to the log.",
)


@cli.command("switch-over", short_help="Hand a guest over now, converged or not.")
@click.argument("session")
@side_option("target", "fault client", DEFAULT_CLIENT_CONTROL_ADDRESS, " where it is to run")
def switch_over(session: str, target: Address) -> None:
    """Hand the guest of SESSION over now, converged or not; what is missing follows.

    Precopy alone can be ended so. A move with --manual-switchover goes round until this is asked.

    \b
      faultclient switch-over move-7 --target 10.0.0.2:7861
    """
    from faultclient.commands import steer

    steer.switch_over(session, str(target))


@cli.command(short_help="Cancel a move: the guest runs on at the source.")
@click.argument("session")
@side_option("target", "fault client", DEFAULT_CLIENT_CONTROL_ADDRESS, " where it was to run")
@side_option("source", "page server", None, ", to be asked in place of the target")
@force_option
def cancel(session: str, target: Address, source: Address | None, force_image: str) -> None:
    """Cancel the move of SESSION. The guest runs on at the source, and the target's VM is ended.

    Once the guest is accepted at the target it is too late, and refused. Ask the --source if the target is
    out of reach: until it has handed over it decides alone. After that, only when the target is dead and
    stays dead, --force-image lets the guest run at the source: if it ran at both, its disks would be lost.

    A fault client that was started again cannot serve the guest that it had. Once that is ended, or does
    without its missing pages, --force-image at the --target lets another session have the VM.

    \b
      faultclient cancel move-7 --target 10.0.0.2:7861
      faultclient cancel move-7 --source 10.0.0.1:7851 --force-image web-1
    """
    from faultclient.commands import steer

    steer.cancel(session, str(target), None if source is None else str(source), force_image)


@cli.command(short_help="Let the source of a move go.")
@click.argument("session")
@side_option("source", "page server", DEFAULT_SERVER_CONTROL_ADDRESS, " where the guest ran")
@force_option
def release(session: str, source: Address, force_image: str) -> None:
    """Let the source of SESSION go: it was to be held when all was there.

    With --force-image its memory is given up before that: pages that are missing at the target are lost for
    ever, and a guest that needs one stands still.

    \b
      faultclient release move-7 --source 10.0.0.1:7851
    """
    from faultclient.commands import steer

    steer.release(session, str(source), force_image)


@cli.command(short_help="Watch the sessions of page servers and fault clients.")
@click.option(
    "--target",
    type=AddressType(),
    multiple=True,
    metavar="ADDRESS",
    help=f"Control port of a fault client; may be given several times.  [default: "
    f"{DEFAULT_CLIENT_CONTROL_ADDRESS}, if --source is not given either]",
)
@click.option(
    "--source",
    type=AddressType(),
    multiple=True,
    metavar="ADDRESS",
    help=f"Control port of a page server; may be given several times.  [default: "
    f"{DEFAULT_SERVER_CONTROL_ADDRESS}, if --target is not given either]",
)
@click.option("--once", is_flag=True, help="Show what there is, and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="From one look to the next.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FAULTCLIENT_TOP_JSON",
    help="Each session that has changed as a JSON object, one a line.",
)
def top(
    target: tuple[Address, ...], source: tuple[Address, ...], once: bool, interval: float, as_json: bool
) -> None:
    """Watch the sessions of page servers and fault clients: how far they are, and why nothing moves if it
    does not.

    On a terminal a table of the whole screen, until Ctrl-C; elsewhere a line for each change.

    \b
      faultclient top
      faultclient top --source 10.0.0.1:7851 --target 10.0.0.2:7861 --target 10.0.0.3:7861
      faultclient top --once --json
    """
    from faultclient.commands.top import look, ports_of, watch

    given = bool(target or source)
    ports = ports_of(
        [str(one) for one in target] or ([] if given else [DEFAULT_CLIENT_CONTROL_ADDRESS]),
        [str(one) for one in source] or ([] if given else [DEFAULT_SERVER_CONTROL_ADDRESS]),
    )
    if once:
        look(ports, as_lines=as_json, given=given)
    else:
        watch(ports, as_lines=as_json, interval_s=interval)


@cli.command(short_help="Show the sessions of a running fault client.")
@click.option(
    "--address",
    type=AddressType(),
    default=DEFAULT_CLIENT_CONTROL_ADDRESS,
    show_default=True,
    metavar="ADDRESS",
    help="Control port of a fault client: HOST:PORT or unix:/PATH.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FAULTCLIENT_STATUS_JSON",
    help="One JSON object a session, one a line.",
)
def status(address: Address, as_json: bool) -> None:
    """Show the sessions of a running fault client: `faultclient top --once`, of this one alone.

    \b
      faultclient status
      faultclient status --address unix:/run/pageferry/control.sock --json
    """
    from faultclient.commands.top import look, ports_of

    look(ports_of([str(address)], []), as_lines=as_json, given=True)


@cli.command(short_help="What this machine can do for VMs, each fact tried.")
@click.option(
    "--device-fd",
    type=click.IntRange(0),
    default=None,
    metavar="N",
    help="An open /dev/userfaultfd that was passed on, as PAGEFERRY_SHIM_UFFD_FD names it to a VMM.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FAULTCLIENT_DOCTOR_JSON",
    help="One JSON object: usable, kernel, uid, and the facts with name, verdict, found, remedy and help.",
)
def doctor(device_fd: int | None, as_json: bool) -> None:
    """Try what this kernel, this user and this container can do for VMs, and say what to do about the rest.

    Every fact is tried on scratch pages of this process's own, never read off a version number. It is the VMM
    that makes the userfaultfd: run this as its user, in its container. From a pool of huge pages one page is
    taken for a moment.

    \b
    good     it works
    less     this machine goes without it: slower, or a case that cannot be served
    bad      no VM can be served like that
    untried  a fact before it is bad
    failed   something that should work answered otherwise: not the same as absent

    \b
      faultclient doctor
      faultclient doctor --json | jq -r '.facts[] | select(.verdict != "GOOD") | .name'
      setpriv --reuid 64055 --regid 64055 --clear-groups faultclient doctor

    \b
    As a VMM that is given the device by who started it:
      exec 3<>/dev/userfaultfd; setpriv --reuid 64055 ... faultclient doctor --device-fd 3

    Exit code 0: some VM can be served here. 71: none, and the last line says why. docs/operations.md lists
    every fact.
    """
    from faultclient.commands.doctor import doctor as run_doctor

    run_doctor(-1 if device_fd is None else device_fd, as_json=as_json)


cli.add_command(poison)


def main() -> None:
    """The console script."""
    run_command(cli)

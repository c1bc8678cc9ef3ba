# SPDX-License-Identifier: Apache-2.0
"""`pageserver`: serve images, or look at one."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import click

from pageferry import __version__
from pageferry.limits import PAGE_BYTES
from pageferry.service.addresses import insecure_option, local_or_agreed
from pageferry.service.entry import run_command
from pageferry.service.logs import configure_logging, log, log_options
from pageferry.service.ready import Ready, ready_options
from pageferry.units import merge
from pageserver.config import ServeOptions, check_names, serve_options, with_regions
from pageserver.images import ImageFile, ImageSpec, open_all
from pageserver.poison_cli import poison

ATTACH_S: Final = 10.0


@click.group(context_settings={"auto_envvar_prefix": "PAGESERVER", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Serves the pages of VMs to fault clients: of saved ones, which are restored before their memory has
    arrived, and of running ones, which move to another host while they run.

    \b
    Exit codes: 0 ended as asked, 64 usage, 65 an image or a path that will not do, 69 an address is
    taken, 70 a bug of ours, 71 a right is missing, 73 no memory, 75 ended before it was ready.
    """


@cli.command()
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
    """Serve image files, and VMs that run here, until SIGTERM.

    An image is a copy of a VM's RAM file that nobody writes any more; holes and zero pages cost nothing on
    the wire. Each is read once before it is served. SIGTERM lets open calls end; a second one cuts them.

    A VM hands its memory over when it starts, and runs on. CreateSession on the control port lets one target
    take it. SIGTERM gives that up, and the guest runs here again; once it is handed over, the page server
    stays until its target needs no pages, however many signals come.

    \b
    One VM, to clients on this host:
      pageserver serve --image web-1=/images/web-1.ram

    \b
    Two VMs, one of them with memory below and above the 4 GiB hole, to clients on a network that is yours:
      pageserver serve --data-listen 10.0.0.1:7850 --insecure-network \\
          --image web-1=/images/web-1.ram \\
          --image db-1=/images/db-1.ram --regions db-1=3G,5G

    \b
    A VM that runs here and may be moved:
      pageserver serve --vm web-1,handoff=/run/web-1.sock,qemu=/run/web-1.qmp

    \b
    From a script, on any free port:
      pageserver serve --image web-1=/images/web-1.ram --data-listen 127.0.0.1:0 \\
          --control-listen unix:/run/pageserver.sock --ready-file /run/pageserver.json

    Every option can be set in the environment: PAGESERVER_SERVE_ and its name, as in
    PAGESERVER_SERVE_DATA_LISTEN=10.0.0.1:7850.
    """
    configure_logging(log_format, log_level)
    specs = with_regions(given.pop("image"), given.pop("regions"), given.pop("poison"))
    vms = tuple(given.pop("vm"))
    check_names(specs, vms)
    for name in ("data_listen", "control_listen"):
        if not local_or_agreed(given[name], insecure_network=insecure_network).local:
            log.warning(
                "insecure_network", port=name, address=str(given[name]), because="there is no TLS yet"
            )
    options = ServeOptions(
        ready=Ready(ready_file, ready_fd),
        progress=sys.stderr.isatty(),
        drain_timeout_s=given.pop("drain_timeout"),
        vms=vms,
        **given,
    )
    opened = open_all(specs)
    try:
        serve_opened(opened, options)
    finally:
        for image in opened:
            image.close()


def serve_opened(images: list[ImageFile], options: ServeOptions) -> None:
    import uvloop

    from pageserver.server import serve as serve_until_told

    uvloop.run(serve_until_told(images, options))


@cli.command(short_help="Look at an image file: its size, its holes, its content id.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--poison",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="The image's poison file.  [default: PATH with .poison]",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="PAGESERVER_INSPECT_JSON",
    help="One JSON object instead of a table.",
)
def inspect(path: Path, poison: Path | None, as_json: bool) -> None:
    """Look at an image file: pages, how many of them hold data, and the content id that clients will see.

    The content id names the bytes: two copies have the same one, however their holes lie. All of the file
    is read, its holes aside. What is lost of it is counted too: pages of its poison file, and pages that the
    disk cannot read. Nothing is written.

    \b
      pageserver inspect /images/web-1.ram
      pageserver inspect --json /images/web-1.ram | jq -r .content_id
    """
    image = ImageFile.open(ImageSpec(path.name, path, poison=poison))
    try:
        facts = look(image)
        lost = poison_of(image, facts)
        shown = {
            "path": str(path),
            "content_id": f"{lost.content_id:016x}",
            "pages": facts.page_count,
            "data_pages": facts.data_pages,
            "zero_pages": facts.page_count - facts.data_pages,
            "bytes": facts.page_count * PAGE_BYTES,
            "disk_bytes": image.disk_bytes,
            "regions": len(image.region_pages),
            "poisoned_pages": lost.pages,
            "unreadable_pages": sum(run.page_count for run in facts.unreadable),
        }
    finally:
        image.close()
    if as_json:
        click.echo(json.dumps(shown))
    else:
        for name, value in shown.items():
            click.echo(f"{name.replace('_', ' '):16}  {value}")


cli.add_command(poison)


@cli.command(short_help="Make a VM that runs already, without the shim, one that can be moved.")
@click.option("--pid", type=click.IntRange(1), required=True, help="The VMM's process.")
@click.option(
    "--ram",
    required=True,
    metavar="FILE",
    help="The file of its RAM, shared (QEMU: mem-path=), or memfd:NAME.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    required=True,
    help="The hand-off socket that --vm of the running `pageserver serve` names.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=ATTACH_S,
    show_default=True,
    metavar="SECONDS",
    help="How long the page server may take to accept it.",
)
def attach(pid: int, ram: str, socket: Path, timeout: float) -> None:
    """Make a VM that runs already, and not under the shim, one that can be moved.

    It is stopped for less than a millisecond, while its main thread registers its own memory for dirty
    tracking; that is injected by ptrace, on x86-64, and takes CAP_SYS_PTRACE. When the page server ends, so
    does the tracking, and this command may be given again.

    \b
      pageserver serve --vm web-1,handoff=/run/web-1.sock,qemu=/run/web-1.qmp &
      pageserver attach --pid "$(pidof qemu-system-x86_64)" --ram /dev/shm/web-1.ram \\
          --socket /run/web-1.sock

    Under the shim more is refused in time: docs/handoff.md, section 9, says what nobody guards here.
    """
    from pageserver.attach import attach as attach_to

    pages = attach_to(pid, ram, socket, timeout)
    click.echo(f"process {pid}: {pages} pages can be moved")


def poison_of(image: ImageFile, facts: Any) -> Any:
    """What `serve` would have of it. PageferryError: it would refuse."""
    from pageserver.poison import expected

    return expected(image, facts)


def look(image: ImageFile) -> Any:
    """What dataplane.inspect finds, with a bar on a terminal meanwhile. Ctrl-C ends it."""
    from pageserver.dataplane import Progress
    from pageserver.dataplane import inspect as read
    from pageserver.progress import ON_TERMINAL_S, bar

    progress = Progress()
    with ThreadPoolExecutor(1) as threads:
        left_out = merge(image.poison.left_out) if image.poison is not None else ()
        reading = threads.submit(read, image, progress, left_out)
        try:
            if sys.stderr.isatty():
                with bar(f"reading {image.name}") as show:
                    while wait([reading], ON_TERMINAL_S).not_done:
                        show(progress.done_bytes, progress.total_bytes)
            return reading.result()
        except BaseException:
            progress.cancel()
            raise


def main() -> None:
    """The console script."""
    run_command(cli)

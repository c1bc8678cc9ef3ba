# SPDX-License-Identifier: Apache-2.0
"""`pageserver`: serve images, or look at one."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from pageferry import __version__
from pageferry.limits import PAGE_BYTES
from pageferry.service.addresses import insecure_option, local_or_agreed
from pageferry.service.entry import run_command
from pageferry.service.logs import configure_logging, log_options
from pageserver.config import serve_options
from pageserver.images import ImageFile, open_all


@click.group(context_settings={"auto_envvar_prefix": "PAGESERVER", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Serves the pages of saved VMs to fault clients."""


@cli.command()
@serve_options
@insecure_option
@log_options
def serve(
    images: tuple[str, ...],
    regions: tuple[str, ...],
    insecure_network: bool,
    log_format: str,
    log_level: str,
    **options: Any,
) -> None:
    """Serve image files until SIGTERM.

    An image is a copy of a VM's RAM file; holes and zero pages cost nothing on the wire. Each is read once
    before it is served. SIGTERM lets open calls end; a second one does not wait.

    \b
      pageserver serve --image web-1=/images/web-1.ram
    """
    configure_logging(log_format, log_level)
    import uvloop

    from pageserver.server import ServeOptions
    from pageserver.server import serve as serve_until_told

    for name in ("data_listen", "control_listen", "metrics_listen"):
        if options[name] is not None:
            options[name] = local_or_agreed(options[name], insecure_network=insecure_network)
    opened = open_all(images, regions)
    try:
        uvloop.run(serve_until_told(opened, ServeOptions(**options)))
    finally:
        for image in opened:
            image.close()


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def inspect(path: Path, as_json: bool) -> None:
    """Look at an image file: pages, how many of them are zeros, and the content id that clients will see."""
    from pageserver.dataplane import Progress
    from pageserver.dataplane import inspect as look

    image = ImageFile.open(path.name, path)
    progress = Progress()
    try:
        with ThreadPoolExecutor(1) as threads:
            looking = threads.submit(look, image, progress)
            if sys.stderr.isatty():
                _show_progress(progress, looking.done)
            facts = looking.result()
    finally:
        progress.cancel()
        image.close()
    shown = {
        "path": str(path),
        "content_id": f"{facts.content_id:016x}",
        "pages": facts.page_count,
        "data_pages": facts.data_pages,
        "zero_pages": facts.page_count - facts.data_pages,
        "bytes": facts.page_count * PAGE_BYTES,
        "disk_bytes": path.stat().st_blocks * 512,
    }
    if as_json:
        click.echo(json.dumps(shown))
    else:
        for name, value in shown.items():
            click.echo(f"{name.replace('_', ' '):12} {value}")


def _show_progress(progress: Any, done: Any) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        while not done():
            bar.update(task, completed=progress.done_bytes, total=progress.total_bytes or None)
            time.sleep(0.05)


def main() -> None:
    """The console script."""
    run_command(cli)

# SPDX-License-Identifier: Apache-2.0
"""How a console script ends: a refusal is one line and an exit code of sysexits.h, never a traceback."""

import sys
from typing import NoReturn

import click

from pageferry.reasons import Exit, PageferryError
from pageferry.service.logs import log


def run_command(command: click.Command) -> NoReturn:
    """Runs it with the process's arguments, and ends the process."""
    try:
        command(standalone_mode=False)
    except click.exceptions.Exit as ended:  # --help and --version
        sys.exit(ended.exit_code)
    except click.Abort:
        sys.exit(Exit.TRY_AGAIN)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.USAGE)
    except PageferryError as error:
        log.error("refused", reason=error.reason.name, text=error.message, remedy=error.remedy)
        sys.exit(error.exit_code)
    sys.exit(Exit.OK)

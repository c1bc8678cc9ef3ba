# SPDX-License-Identifier: Apache-2.0
"""How a console script ends: a refusal is one line and an exit code of sysexits.h, never a traceback.

Exit codes: 0; 64 for what is wrong with the command line or the environment's settings, as click finds it;
the code of the reason (pageferry/reasons.py) for every other refusal; 70 for what nobody has foreseen.
"""

import os
import sys
from typing import NoReturn

import click

from pageferry.reasons import Exit, PageferryError, Reason
from pageferry.service.logs import configure_logging, configured, log


def run_command(command: click.Command) -> NoReturn:
    """Runs it with the process's arguments, and ends the process."""
    try:
        command(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:  # --help and --version
        sys.exit(ended.exit_code)
    except click.Abort:  # Ctrl-C
        sys.exit(Exit.TRY_AGAIN)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.USAGE)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    except Exception as error:  # noqa: BLE001  # it ends here, one way or the other
        sys.exit(refused(error))
    sys.exit(Exit.OK)


def refused(error: BaseException) -> int:
    """Says what ended the process; its exit code."""
    refusal = refusal_in(error)
    if refusal is None:
        if not configured():
            configure_logging()
        log.error("bug", text=str(error), remedy="please report it with this log", exc_info=error)
        return Exit.BUG
    if configured():
        log.error("refused", reason=refusal.reason.name, text=refusal.message, remedy=refusal.remedy)
    else:
        click.echo(f"Error: {refusal} [{refusal.reason.name}]", err=True)
    return refusal.exit_code


def refusal_in(error: BaseException) -> PageferryError | None:
    """The refusal that an error is, or that ended a group of tasks. Nothing if any of them is no refusal."""
    if isinstance(error, PageferryError):
        return error
    if isinstance(error, MemoryError):
        return PageferryError(Reason.NO_MEMORY, "this process has no memory left", "give it more")
    if isinstance(error, BaseExceptionGroup):
        found = [refusal_in(one) for one in error.exceptions]
        return found[0] if all(found) else None
    return None

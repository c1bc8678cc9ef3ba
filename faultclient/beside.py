# SPDX-License-Identifier: Apache-2.0
"""What stands beside a pager: reports, huge pages, a port. The guest needs its pages, and none of these."""

from collections.abc import Coroutine
from typing import Any

from pageferry.reasons import PageferryError
from pageferry.service.logs import log


async def beside(what: str, work: Coroutine[Any, Any, None]) -> None:
    """Does it. Should it fail, the pages go on without it."""
    try:
        await work
    except Exception as error:  # noqa: BLE001  # whatever it is, the guest needs its pages
        known = isinstance(error, PageferryError)
        log.error("goes_on_without", what=what, text=str(error), exc_info=None if known else error)

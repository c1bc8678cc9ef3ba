# SPDX-License-Identifier: Apache-2.0
"""`faultclient serve`: long-running, many VMs, sessions as somebody asks for them on the control port.

Hand-off sockets are up before grpc is imported, so a VMM that comes early is taken at once. SIGTERM: no more
sessions; those whose guest was not accepted are given up, and the process ends when the last guest that needs
it has all its pages.
"""

import asyncio
import importlib
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

from faultclient.house import Host
from faultclient.pager import accept_handoff
from faultclient.serve_config import ServeOptions
from faultclient.sessions import Sessions
from faultclient.vms import Vms
from pageferry.limits import DRAIN_TIMEOUT_MS
from pageferry.records import Records
from pageferry.service.abilities import check_arriving
from pageferry.service.addresses import try_listening
from pageferry.service.logs import log

REPORT_S: Final = DRAIN_TIMEOUT_MS / 1000


@contextmanager
def signals(on_trace: Callable[[], None]) -> Iterator[asyncio.Event]:
    """Set by SIGTERM or SIGINT. SIGUSR2 writes the pagers' last steps to the log."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    loop.add_signal_handler(signal.SIGINT, ending.set)
    loop.add_signal_handler(signal.SIGUSR2, on_trace)
    try:
        yield ending
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            loop.remove_signal_handler(number)


async def serve(options: ServeOptions) -> None:
    """Until a signal, and until nobody needs it any more. PageferryError: it could not begin."""
    options.ready.check()
    check_arriving(filled_before=True)
    for address in (options.control_listen, options.metrics_listen):
        if address is not None:
            try_listening(address)
    async with AsyncExitStack() as stack:
        records = stack.enter_context(Records(options.state_dir))
        vms = stack.enter_context(Vms())
        host = Host(
            options.vms,
            vms,
            vmm_uid=options.vmm_uid,
            spin_us=options.spin_us,
            collapse=options.collapse,
            accept=accept_handoff,
            keep_registration=options.keep_registration,
        )
        await stack.enter_async_context(host.handoffs.listening())
        server = await asyncio.to_thread(importlib.import_module, "faultclient.server")
        source = await asyncio.to_thread(importlib.import_module, "faultclient.source")
        sessions = Sessions(host, records, source.GrpcSource)
        stack.push_async_callback(sessions.close)
        ending = stack.enter_context(signals(lambda: log_traces(sessions)))
        up = server.ControlServer(sessions, options.control_listen, options.metrics_listen, vms)
        await stack.enter_async_context(up)
        log.info("serving", vms=",".join(spec.name for spec in options.vms), **up.addresses)
        options.ready.say(up.addresses)
        await ending.wait()
        log.info("ending")
        await sessions.leave("the fault client is ending", REPORT_S)
    log.info("ended")


def log_traces(sessions: Sessions) -> None:
    for session in sessions.all():
        session.log_trace()

# SPDX-License-Identifier: Apache-2.0
"""A fault client in the one state that the minor fault's figure needs: every page is here, none is mapped.

It is our client in all that works on a page: the same pager thread in the same kind of process, from the same
hand-off. Only the orders differ. `faultclient run` goes on after arming and maps what it holds ahead of the
guest; here that is turned off before arming, so that each touch finds its page current and unmapped.

Says "listening", then "armed" once all pages are held and faults are served; ends with its VMM.

    python -m bench.held SOCKET IMAGE DATA_ADDRESS
"""

import select
import sys
from pathlib import Path

from faultclient.pager import EventKind, Pager
from faultclient.vms import Vms
from pageferry.host.listener import Listener

ENDS = (EventKind.FAILED, EventKind.VMM_GONE, EventKind.COMPLETE)


def follow(pager: Pager) -> EventKind:
    """Gives the orders as the events call for them; returns how it ended."""
    while True:
        select.select([pager.event_fd()], [], [])
        for event in pager.events():
            if event.kind is EventKind.POPULATED:
                pager.background(False)
                pager.arm()
            elif event.kind is EventKind.ARMED:
                print("armed", flush=True)
            elif event.kind in ENDS:
                print(f"{event.kind.name} {event.text}", file=sys.stderr)
                return event.kind


def main() -> int:
    socket, image, data_address = sys.argv[1:]
    with Vms() as vms:
        with Listener(Path(socket)) as listener:
            print("listening", flush=True)
            handoff = listener.accept()
        vm = vms.take(handoff, image=image, data_address=data_address, background=True, spin_us=0)
        return 65 if follow(vm.pager) is EventKind.FAILED else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""One VM whose memory was handed to a page server: its process, its adapter, and what is known of its memory.

The same for a VM that an earlier page server has left behind: its process is found again by the record, its
memory is not, for the userfaultfd that saw its writes has ended with that server.
"""

import asyncio
import os
import secrets
import signal
from typing import Self

from pageferry.host.adapters import adapter
from pageferry.host.handoff import Handoff
from pageferry.host.process import HeldProcess
from pageferry.host.vmm import Vmm
from pageferry.host.vmspec import VmSpec
from pageferry.limits import PAGE_BYTES
from pageferry.reasons import PageferryError, Reason
from pageserver.arriving import Arriving
from pageserver.record import SourceRecord, find_again, mark_of


class Vm:
    """Closes what it was handed over. `served`: its memory is an image of the data plane."""

    def __init__(
        self,
        spec: VmSpec,
        *,
        pidfd: int,
        pid: int,
        mark: str,
        page_count: int,
        content_id: int,
        handoff: Handoff | None = None,
    ) -> None:
        """Owns the hand-off; without one, the pidfd."""
        self.spec = spec
        self.pid = pid
        self.mark = mark
        self.page_count = page_count
        self.content_id = content_id
        self.handoff = handoff
        self.served = False
        self.arriving: Arriving | None = None  # a fault client brings its memory still, or waits to be let go
        self.looking = asyncio.Lock()  # held while a session is made of it
        self._pidfd = pidfd
        self._process = HeldProcess(pidfd)

    @classmethod
    def of_handoff(cls, spec: VmSpec, handoff: Handoff) -> Self:
        """PageferryError: this is no VM that can be tracked."""
        if not handoff.shared:
            raise PageferryError(
                Reason.UNSUPPORTED,
                "the memory that was handed over is private: nobody else can read it",
                "put the VM's RAM on a tmpfs or a memfd, shared",
            )
        if handoff.pid <= 0 or handoff.pidfd < 0:
            raise PageferryError(
                Reason.UNSUPPORTED,
                "the VMM is in another PID namespace: what it writes cannot be seen from here",
                "run the page server in its PID namespace, or in the host's",
            )
        try:
            mark = mark_of(handoff.pid)
        except ProcessLookupError as error:
            raise PageferryError(Reason.NO_VMM, "the VMM has exited", "start it again") from error
        return cls(
            spec,
            pidfd=handoff.pidfd,
            pid=handoff.pid,
            mark=mark,
            page_count=handoff.length_bytes // PAGE_BYTES,
            content_id=secrets.randbits(63) + 1,
            handoff=handoff,
        )

    @classmethod
    def of_record(cls, record: SourceRecord) -> Self | None:
        """The one that a session had before this server was started; None if it is gone."""
        pidfd = find_again(record.pid, record.mark)
        if pidfd is None:
            return None
        return cls(
            record.spec,
            pidfd=pidfd,
            pid=record.pid,
            mark=record.mark,
            page_count=record.page_count,
            content_id=record.content_id,
        )

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def gone(self) -> bool:
        return self._process.ended

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._pidfd

    def adapter(self) -> Vmm:
        """A new one, for one session."""
        return adapter(self.spec, pidfd=self._pidfd)

    def stop(self) -> None:
        """The whole process; its guest stands still already."""
        self._process.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send(signal.SIGCONT)

    def close(self) -> None:
        self._process.close()
        if self.arriving is not None:
            self.arriving.close()
        if self.handoff is not None:
            self.handoff.close()
        elif self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1

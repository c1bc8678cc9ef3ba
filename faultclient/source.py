# SPDX-License-Identifier: Apache-2.0
"""The source of a move as the target's driver sees it: four questions to MigrationService, over grpc.aio.

Every call has a limit in time and shows the session's metadata. What came back is a value of ours or a
PageferryError; asking again is the driver's business.
"""

from collections.abc import AsyncGenerator
from typing import Any, Final

import grpc

from faultclient.asking import HandOverPart, SourceFacts
from faultclient.vms import Ticket
from pageferry.limits import CONTROL_MESSAGE_BYTES_MAX
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.refusals import refused
from pageferry.v1 import migrations_pb2, migrations_pb2_grpc

CALL_S: Final = 5.0
# Until its first message: the source stops its guest (30 s at most), saves its state (30 s), freezes the map.
HAND_OVER_S: Final = 75.0
OPTIONS: Final = (
    ("grpc.max_receive_message_length", CONTROL_MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # by its name; it is how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),  # a host that is gone says nothing
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class GrpcSource:
    """A move's one connection to the control port of its source."""

    def __init__(self, address: str, ticket: Ticket) -> None:
        self._address = address
        self._name = ticket.session
        self._metadata = tuple(ticket.metadata().items())
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub: Any = migrations_pb2_grpc.MigrationServiceStub(self._channel)

    async def facts(self) -> SourceFacts:
        name = migrations_pb2.SessionName(session=self._name)
        return facts_of(await self._ask(self._stub.GetSession, name))

    async def record(
        self, phase: Phase, *, digest: bytes = b"", owned: int = 0, zero: int = 0, poisoned: int = 0
    ) -> SourceFacts:
        request = migrations_pb2.RecordPhaseRequest(
            session=self._name,
            phase=int(phase),  # type: ignore[arg-type]  # the same numbers: a test compares them
            manifest_digest=digest,
            pages_owned=owned,
            pages_zero=zero,
            pages_poisoned=poisoned,
        )
        return facts_of(await self._ask(self._stub.RecordPhase, request))

    async def hand_over(self) -> AsyncGenerator[HandOverPart]:
        request = migrations_pb2.SessionName(session=self._name)
        call = self._stub.HandOver(request, metadata=self._metadata, timeout=HAND_OVER_S)
        try:
            # not `async for`: its iterator and the call hold each other, and with that the connection
            while (message := await call.read()) is not grpc.aio.EOF:
                yield HandOverPart(
                    as_of=message.as_of,
                    digest=message.manifest_digest,
                    stopped_us=message.stopped_us,
                    state=message.device_state,
                    state_digest=message.device_state_digest,
                    last=message.last,
                )
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()

    async def _ask(self, call: Any, request: Any) -> migrations_pb2.Session:
        try:
            answer: migrations_pb2.Session = await call(request, metadata=self._metadata, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) from error
        return answer

    def _refused(self, error: grpc.aio.AioRpcError) -> PageferryError:
        return refused(error, f"the page server at {self._address}")


def facts_of(session: migrations_pb2.Session) -> SourceFacts:
    return SourceFacts(
        phase=Phase(session.phase) if session.phase else Phase.CREATED,
        machine=session.machine,
        cancel_requested=session.cancel_requested,
        failure=Reason(session.failure) if session.failure else None,
        message=session.message,
    )

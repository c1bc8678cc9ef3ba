# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from pageferry.v1 import migrations_pb2

class MigrationServiceStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    CreateSession: grpc.UnaryUnaryMultiCallable[migrations_pb2.CreateSessionRequest, migrations_pb2.Session]
    GetSession: grpc.UnaryUnaryMultiCallable[migrations_pb2.SessionName, migrations_pb2.Session]
    WatchSessions: grpc.UnaryStreamMultiCallable[migrations_pb2.WatchSessionsRequest, migrations_pb2.Session]
    CancelSession: grpc.UnaryUnaryMultiCallable[migrations_pb2.EndSessionRequest, migrations_pb2.Session]
    ReleaseSession: grpc.UnaryUnaryMultiCallable[migrations_pb2.EndSessionRequest, migrations_pb2.Session]
    HandOver: grpc.UnaryStreamMultiCallable[migrations_pb2.SessionName, migrations_pb2.HandOverResponse]
    RecordPhase: grpc.UnaryUnaryMultiCallable[migrations_pb2.RecordPhaseRequest, migrations_pb2.Session]
    PoisonPages: grpc.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]
    ListPoison: grpc.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]

# For type checkers alone: what MigrationServiceStub is over a channel of grpc.aio; cast to it.
class MigrationServiceAsyncStub:
    CreateSession: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.CreateSessionRequest, migrations_pb2.Session]
    GetSession: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.SessionName, migrations_pb2.Session]
    WatchSessions: grpc.aio.UnaryStreamMultiCallable[migrations_pb2.WatchSessionsRequest, migrations_pb2.Session]
    CancelSession: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.EndSessionRequest, migrations_pb2.Session]
    ReleaseSession: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.EndSessionRequest, migrations_pb2.Session]
    HandOver: grpc.aio.UnaryStreamMultiCallable[migrations_pb2.SessionName, migrations_pb2.HandOverResponse]
    RecordPhase: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.RecordPhaseRequest, migrations_pb2.Session]
    PoisonPages: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]
    ListPoison: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]

# Each call may be plain or async.
class MigrationServiceServicer:
    def CreateSession(
        self, request: migrations_pb2.CreateSessionRequest, context: Any
    ) -> migrations_pb2.Session | Awaitable[migrations_pb2.Session]: ...
    def GetSession(
        self, request: migrations_pb2.SessionName, context: Any
    ) -> migrations_pb2.Session | Awaitable[migrations_pb2.Session]: ...
    def WatchSessions(
        self, request: migrations_pb2.WatchSessionsRequest, context: Any
    ) -> Iterator[migrations_pb2.Session] | AsyncIterator[migrations_pb2.Session] | Awaitable[None]: ...
    def CancelSession(
        self, request: migrations_pb2.EndSessionRequest, context: Any
    ) -> migrations_pb2.Session | Awaitable[migrations_pb2.Session]: ...
    def ReleaseSession(
        self, request: migrations_pb2.EndSessionRequest, context: Any
    ) -> migrations_pb2.Session | Awaitable[migrations_pb2.Session]: ...
    def HandOver(
        self, request: migrations_pb2.SessionName, context: Any
    ) -> Iterator[migrations_pb2.HandOverResponse] | AsyncIterator[migrations_pb2.HandOverResponse] | Awaitable[None]: ...
    def RecordPhase(
        self, request: migrations_pb2.RecordPhaseRequest, context: Any
    ) -> migrations_pb2.Session | Awaitable[migrations_pb2.Session]: ...
    def PoisonPages(
        self, request: migrations_pb2.PoisonRequest, context: Any
    ) -> migrations_pb2.PoisonLog | Awaitable[migrations_pb2.PoisonLog]: ...
    def ListPoison(
        self, request: migrations_pb2.PoisonRequest, context: Any
    ) -> migrations_pb2.PoisonLog | Awaitable[migrations_pb2.PoisonLog]: ...

def add_MigrationServiceServicer_to_server(
    servicer: MigrationServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...

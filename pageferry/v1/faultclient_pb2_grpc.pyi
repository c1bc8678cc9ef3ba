# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
from pageferry.v1 import faultclient_pb2
from pageferry.v1 import migrations_pb2

class FaultClientServiceStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    StartSession: grpc.UnaryUnaryMultiCallable[faultclient_pb2.StartSessionRequest, migrations_pb2.Session]
    SwitchOver: grpc.UnaryUnaryMultiCallable[migrations_pb2.SessionName, migrations_pb2.Session]
    GetSession: grpc.UnaryUnaryMultiCallable[migrations_pb2.SessionName, migrations_pb2.Session]
    WatchSessions: grpc.UnaryStreamMultiCallable[migrations_pb2.WatchSessionsRequest, migrations_pb2.Session]
    CancelSession: grpc.UnaryUnaryMultiCallable[migrations_pb2.EndSessionRequest, migrations_pb2.Session]
    GetArrivals: grpc.UnaryUnaryMultiCallable[migrations_pb2.SessionName, faultclient_pb2.Arrivals]
    PoisonPages: grpc.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]
    ClearPoison: grpc.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]
    ListPoison: grpc.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]

# For type checkers alone: what FaultClientServiceStub is over a channel of grpc.aio; cast to it.
class FaultClientServiceAsyncStub:
    StartSession: grpc.aio.UnaryUnaryMultiCallable[faultclient_pb2.StartSessionRequest, migrations_pb2.Session]
    SwitchOver: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.SessionName, migrations_pb2.Session]
    GetSession: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.SessionName, migrations_pb2.Session]
    WatchSessions: grpc.aio.UnaryStreamMultiCallable[migrations_pb2.WatchSessionsRequest, migrations_pb2.Session]
    CancelSession: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.EndSessionRequest, migrations_pb2.Session]
    GetArrivals: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.SessionName, faultclient_pb2.Arrivals]
    PoisonPages: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]
    ClearPoison: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]
    ListPoison: grpc.aio.UnaryUnaryMultiCallable[migrations_pb2.PoisonRequest, migrations_pb2.PoisonLog]

# Each call may be plain or async.
class FaultClientServiceServicer:
    def StartSession(
        self, request: faultclient_pb2.StartSessionRequest, context: Any
    ) -> migrations_pb2.Session | Awaitable[migrations_pb2.Session]: ...
    def SwitchOver(
        self, request: migrations_pb2.SessionName, context: Any
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
    def GetArrivals(
        self, request: migrations_pb2.SessionName, context: Any
    ) -> faultclient_pb2.Arrivals | Awaitable[faultclient_pb2.Arrivals]: ...
    def PoisonPages(
        self, request: migrations_pb2.PoisonRequest, context: Any
    ) -> migrations_pb2.PoisonLog | Awaitable[migrations_pb2.PoisonLog]: ...
    def ClearPoison(
        self, request: migrations_pb2.PoisonRequest, context: Any
    ) -> migrations_pb2.PoisonLog | Awaitable[migrations_pb2.PoisonLog]: ...
    def ListPoison(
        self, request: migrations_pb2.PoisonRequest, context: Any
    ) -> migrations_pb2.PoisonLog | Awaitable[migrations_pb2.PoisonLog]: ...

def add_FaultClientServiceServicer_to_server(
    servicer: FaultClientServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...

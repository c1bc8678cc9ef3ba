# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from pageferry.v1 import pages_pb2 as _pages_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Session(_message.Message):
    __slots__ = ("session", "image", "revision", "phase", "phase_since", "paused", "failure", "message", "peer", "cancel_requested", "pages_total", "pages_settled", "pages_poisoned", "poison_seq", "wire_bytes", "round", "dirty_pages", "dirty_pages_per_second", "downtime_us", "faults", "faults_waiting", "blocktime_us")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_SINCE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    PAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PAGES_SETTLED_FIELD_NUMBER: _ClassVar[int]
    PAGES_POISONED_FIELD_NUMBER: _ClassVar[int]
    POISON_SEQ_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DIRTY_PAGES_FIELD_NUMBER: _ClassVar[int]
    DIRTY_PAGES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    DOWNTIME_US_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    BLOCKTIME_US_FIELD_NUMBER: _ClassVar[int]
    session: str
    image: str
    revision: int
    phase: _pages_pb2.Phase
    phase_since: _timestamp_pb2.Timestamp
    paused: _pages_pb2.Reason
    failure: _pages_pb2.Reason
    message: str
    peer: str
    cancel_requested: bool
    pages_total: int
    pages_settled: int
    pages_poisoned: int
    poison_seq: int
    wire_bytes: int
    round: int
    dirty_pages: int
    dirty_pages_per_second: int
    downtime_us: int
    faults: int
    faults_waiting: int
    blocktime_us: int
    def __init__(self, session: _Optional[str] = ..., image: _Optional[str] = ..., revision: _Optional[int] = ..., phase: _Optional[_Union[_pages_pb2.Phase, str]] = ..., phase_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., paused: _Optional[_Union[_pages_pb2.Reason, str]] = ..., failure: _Optional[_Union[_pages_pb2.Reason, str]] = ..., message: _Optional[str] = ..., peer: _Optional[str] = ..., cancel_requested: bool = ..., pages_total: _Optional[int] = ..., pages_settled: _Optional[int] = ..., pages_poisoned: _Optional[int] = ..., poison_seq: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., round: _Optional[int] = ..., dirty_pages: _Optional[int] = ..., dirty_pages_per_second: _Optional[int] = ..., downtime_us: _Optional[int] = ..., faults: _Optional[int] = ..., faults_waiting: _Optional[int] = ..., blocktime_us: _Optional[int] = ...) -> None: ...

class SessionName(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class WatchSessionsRequest(_message.Message):
    __slots__ = ("session", "interval_ms", "once")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    ONCE_FIELD_NUMBER: _ClassVar[int]
    session: str
    interval_ms: int
    once: bool
    def __init__(self, session: _Optional[str] = ..., interval_ms: _Optional[int] = ..., once: bool = ...) -> None: ...

# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from pageferry.v1 import pages_pb2 as _pages_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Session(_message.Message):
    __slots__ = ("session", "image", "revision", "phase", "phase_since", "paused", "failure", "message", "peer", "cancel_requested", "pages_total", "pages_settled", "pages_poisoned", "poison_seq", "wire_bytes", "round", "dirty_pages", "dirty_pages_per_second", "downtime_us", "faults", "faults_waiting", "blocktime_us", "machine")
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
    MACHINE_FIELD_NUMBER: _ClassVar[int]
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
    machine: str
    def __init__(self, session: _Optional[str] = ..., image: _Optional[str] = ..., revision: _Optional[int] = ..., phase: _Optional[_Union[_pages_pb2.Phase, str]] = ..., phase_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., paused: _Optional[_Union[_pages_pb2.Reason, str]] = ..., failure: _Optional[_Union[_pages_pb2.Reason, str]] = ..., message: _Optional[str] = ..., peer: _Optional[str] = ..., cancel_requested: bool = ..., pages_total: _Optional[int] = ..., pages_settled: _Optional[int] = ..., pages_poisoned: _Optional[int] = ..., poison_seq: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., round: _Optional[int] = ..., dirty_pages: _Optional[int] = ..., dirty_pages_per_second: _Optional[int] = ..., downtime_us: _Optional[int] = ..., faults: _Optional[int] = ..., faults_waiting: _Optional[int] = ..., blocktime_us: _Optional[int] = ..., machine: _Optional[str] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("session", "image", "token_sha256", "target_identity", "attach_within_s", "hold_source")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SHA256_FIELD_NUMBER: _ClassVar[int]
    TARGET_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ATTACH_WITHIN_S_FIELD_NUMBER: _ClassVar[int]
    HOLD_SOURCE_FIELD_NUMBER: _ClassVar[int]
    session: str
    image: str
    token_sha256: bytes
    target_identity: str
    attach_within_s: int
    hold_source: bool
    def __init__(self, session: _Optional[str] = ..., image: _Optional[str] = ..., token_sha256: _Optional[bytes] = ..., target_identity: _Optional[str] = ..., attach_within_s: _Optional[int] = ..., hold_source: bool = ...) -> None: ...

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

class EndSessionRequest(_message.Message):
    __slots__ = ("session", "force_image")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FORCE_IMAGE_FIELD_NUMBER: _ClassVar[int]
    session: str
    force_image: str
    def __init__(self, session: _Optional[str] = ..., force_image: _Optional[str] = ...) -> None: ...

class PoisonRequest(_message.Message):
    __slots__ = ("session", "runs", "guest_addresses", "after_seq", "image")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    GUEST_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    session: str
    runs: _containers.RepeatedScalarFieldContainer[int]
    guest_addresses: _containers.RepeatedScalarFieldContainer[int]
    after_seq: int
    image: str
    def __init__(self, session: _Optional[str] = ..., runs: _Optional[_Iterable[int]] = ..., guest_addresses: _Optional[_Iterable[int]] = ..., after_seq: _Optional[int] = ..., image: _Optional[str] = ...) -> None: ...

class PoisonLog(_message.Message):
    __slots__ = ("seq", "runs", "entries")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    seq: int
    runs: _containers.RepeatedScalarFieldContainer[int]
    entries: _containers.RepeatedCompositeFieldContainer[PoisonEntry]
    def __init__(self, seq: _Optional[int] = ..., runs: _Optional[_Iterable[int]] = ..., entries: _Optional[_Iterable[_Union[PoisonEntry, _Mapping[str, object]]]] = ...) -> None: ...

class PoisonEntry(_message.Message):
    __slots__ = ("seq", "page", "page_count", "cleared", "was_mapped", "mapped", "held")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    PAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    WAS_MAPPED_FIELD_NUMBER: _ClassVar[int]
    MAPPED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    seq: int
    page: int
    page_count: int
    cleared: bool
    was_mapped: bool
    mapped: bool
    held: bool
    def __init__(self, seq: _Optional[int] = ..., page: _Optional[int] = ..., page_count: _Optional[int] = ..., cleared: bool = ..., was_mapped: bool = ..., mapped: bool = ..., held: bool = ...) -> None: ...

class HandOverResponse(_message.Message):
    __slots__ = ("as_of", "manifest_digest", "stopped_us", "device_state", "device_state_digest", "last")
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STOPPED_US_FIELD_NUMBER: _ClassVar[int]
    DEVICE_STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    as_of: int
    manifest_digest: bytes
    stopped_us: int
    device_state: bytes
    device_state_digest: int
    last: bool
    def __init__(self, as_of: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., stopped_us: _Optional[int] = ..., device_state: _Optional[bytes] = ..., device_state_digest: _Optional[int] = ..., last: bool = ...) -> None: ...

class RecordPhaseRequest(_message.Message):
    __slots__ = ("session", "phase", "manifest_digest", "pages_owned", "pages_zero", "pages_poisoned")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAGES_OWNED_FIELD_NUMBER: _ClassVar[int]
    PAGES_ZERO_FIELD_NUMBER: _ClassVar[int]
    PAGES_POISONED_FIELD_NUMBER: _ClassVar[int]
    session: str
    phase: _pages_pb2.Phase
    manifest_digest: bytes
    pages_owned: int
    pages_zero: int
    pages_poisoned: int
    def __init__(self, session: _Optional[str] = ..., phase: _Optional[_Union[_pages_pb2.Phase, str]] = ..., manifest_digest: _Optional[bytes] = ..., pages_owned: _Optional[int] = ..., pages_zero: _Optional[int] = ..., pages_poisoned: _Optional[int] = ...) -> None: ...

# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_KIND_UNSPECIFIED: _ClassVar[RunKind]
    RUN_KIND_DATA: _ClassVar[RunKind]
    RUN_KIND_ZERO: _ClassVar[RunKind]
    RUN_KIND_POISON: _ClassVar[RunKind]
    RUN_KIND_LATER: _ClassVar[RunKind]
    RUN_KIND_VERSION: _ClassVar[RunKind]

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_IDENTITY: _ClassVar[Encoding]
    ENCODING_ZSTD: _ClassVar[Encoding]
    ENCODING_LZ4: _ClassVar[Encoding]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_CREATED: _ClassVar[Phase]
    PHASE_PRECOPY: _ClassVar[Phase]
    PHASE_SWITCHOVER: _ClassVar[Phase]
    PHASE_POSTCOPY: _ClassVar[Phase]
    PHASE_COMMITTED: _ClassVar[Phase]
    PHASE_RELEASED: _ClassVar[Phase]
    PHASE_ABORTED: _ClassVar[Phase]
    PHASE_LOST: _ClassVar[Phase]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_BAD_REQUEST: _ClassVar[Reason]
    REASON_OUT_OF_IMAGE: _ClassVar[Reason]
    REASON_NO_SUCH_IMAGE: _ClassVar[Reason]
    REASON_ALREADY_ATTACHED: _ClassVar[Reason]
    REASON_WRONG_PHASE: _ClassVar[Reason]
    REASON_SUPERSEDED: _ClassVar[Reason]
    REASON_MISMATCH: _ClassVar[Reason]
    REASON_BUSY: _ClassVar[Reason]
    REASON_NO_MEMORY: _ClassVar[Reason]
    REASON_GOING_AWAY: _ClassVar[Reason]
    REASON_TOO_SLOW: _ClassVar[Reason]
    REASON_UNSUPPORTED: _ClassVar[Reason]
    REASON_NOT_ALLOWED: _ClassVar[Reason]
    REASON_CANCELLED: _ClassVar[Reason]
    REASON_NO_VMM: _ClassVar[Reason]
    REASON_BUG: _ClassVar[Reason]
RUN_KIND_UNSPECIFIED: RunKind
RUN_KIND_DATA: RunKind
RUN_KIND_ZERO: RunKind
RUN_KIND_POISON: RunKind
RUN_KIND_LATER: RunKind
RUN_KIND_VERSION: RunKind
ENCODING_UNSPECIFIED: Encoding
ENCODING_IDENTITY: Encoding
ENCODING_ZSTD: Encoding
ENCODING_LZ4: Encoding
PHASE_UNSPECIFIED: Phase
PHASE_CREATED: Phase
PHASE_PRECOPY: Phase
PHASE_SWITCHOVER: Phase
PHASE_POSTCOPY: Phase
PHASE_COMMITTED: Phase
PHASE_RELEASED: Phase
PHASE_ABORTED: Phase
PHASE_LOST: Phase
REASON_UNSPECIFIED: Reason
REASON_BAD_REQUEST: Reason
REASON_OUT_OF_IMAGE: Reason
REASON_NO_SUCH_IMAGE: Reason
REASON_ALREADY_ATTACHED: Reason
REASON_WRONG_PHASE: Reason
REASON_SUPERSEDED: Reason
REASON_MISMATCH: Reason
REASON_BUSY: Reason
REASON_NO_MEMORY: Reason
REASON_GOING_AWAY: Reason
REASON_TOO_SLOW: Reason
REASON_UNSUPPORTED: Reason
REASON_NOT_ALLOWED: Reason
REASON_CANCELLED: Reason
REASON_NO_VMM: Reason
REASON_BUG: Reason

class DescribeImageRequest(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: str
    def __init__(self, image: _Optional[str] = ...) -> None: ...

class DescribeImageResponse(_message.Message):
    __slots__ = ("content_id", "page_count", "page_bytes", "unit_pages", "region_pages", "live", "as_of", "batch_bytes_max", "runs_max", "wanted_pages_max", "urgent_calls_max", "encodings")
    CONTENT_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNIT_PAGES_FIELD_NUMBER: _ClassVar[int]
    REGION_PAGES_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    BATCH_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    RUNS_MAX_FIELD_NUMBER: _ClassVar[int]
    WANTED_PAGES_MAX_FIELD_NUMBER: _ClassVar[int]
    URGENT_CALLS_MAX_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    content_id: int
    page_count: int
    page_bytes: int
    unit_pages: int
    region_pages: _containers.RepeatedScalarFieldContainer[int]
    live: bool
    as_of: int
    batch_bytes_max: int
    runs_max: int
    wanted_pages_max: int
    urgent_calls_max: int
    encodings: int
    def __init__(self, content_id: _Optional[int] = ..., page_count: _Optional[int] = ..., page_bytes: _Optional[int] = ..., unit_pages: _Optional[int] = ..., region_pages: _Optional[_Iterable[int]] = ..., live: bool = ..., as_of: _Optional[int] = ..., batch_bytes_max: _Optional[int] = ..., runs_max: _Optional[int] = ..., wanted_pages_max: _Optional[int] = ..., urgent_calls_max: _Optional[int] = ..., encodings: _Optional[int] = ...) -> None: ...

class GetPageRequest(_message.Message):
    __slots__ = ("image", "page")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    image: str
    page: int
    def __init__(self, image: _Optional[str] = ..., page: _Optional[int] = ...) -> None: ...

class FetchPagesRequest(_message.Message):
    __slots__ = ("image", "encodings", "runs", "heartbeat")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    image: str
    encodings: int
    runs: _containers.RepeatedScalarFieldContainer[int]
    heartbeat: int
    def __init__(self, image: _Optional[str] = ..., encodings: _Optional[int] = ..., runs: _Optional[_Iterable[int]] = ..., heartbeat: _Optional[int] = ...) -> None: ...

class StreamPagesRequest(_message.Message):
    __slots__ = ("image", "since_version", "runs", "versions_only", "open_round", "encodings")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SINCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_ONLY_FIELD_NUMBER: _ClassVar[int]
    OPEN_ROUND_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    image: str
    since_version: int
    runs: _containers.RepeatedScalarFieldContainer[int]
    versions_only: bool
    open_round: bool
    encodings: int
    def __init__(self, image: _Optional[str] = ..., since_version: _Optional[int] = ..., runs: _Optional[_Iterable[int]] = ..., versions_only: bool = ..., open_round: bool = ..., encodings: _Optional[int] = ...) -> None: ...

class PageBatch(_message.Message):
    __slots__ = ("as_of", "runs", "encoding", "digest", "heartbeat", "phase", "cancel_requested", "manifest_digest", "data")
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    as_of: int
    runs: _containers.RepeatedScalarFieldContainer[int]
    encoding: Encoding
    digest: int
    heartbeat: int
    phase: Phase
    cancel_requested: bool
    manifest_digest: bytes
    data: bytes
    def __init__(self, as_of: _Optional[int] = ..., runs: _Optional[_Iterable[int]] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., digest: _Optional[int] = ..., heartbeat: _Optional[int] = ..., phase: _Optional[_Union[Phase, str]] = ..., cancel_requested: bool = ..., manifest_digest: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
from pageferry.v1 import migrations_pb2 as _migrations_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Postcopy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POSTCOPY_UNSPECIFIED: _ClassVar[Postcopy]
    POSTCOPY_ALLOW: _ClassVar[Postcopy]
    POSTCOPY_FORBID: _ClassVar[Postcopy]
    POSTCOPY_AT_ONCE: _ClassVar[Postcopy]
POSTCOPY_UNSPECIFIED: Postcopy
POSTCOPY_ALLOW: Postcopy
POSTCOPY_FORBID: Postcopy
POSTCOPY_AT_ONCE: Postcopy

class StartSessionRequest(_message.Message):
    __slots__ = ("session", "image", "vm", "data_address", "control_address", "postcopy", "manual_switchover", "max_downtime_ms", "bandwidth_per_migration", "completion_timeout_per_gib_s", "progress_timeout_s", "rounds_max")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    VM_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    POSTCOPY_FIELD_NUMBER: _ClassVar[int]
    MANUAL_SWITCHOVER_FIELD_NUMBER: _ClassVar[int]
    MAX_DOWNTIME_MS_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_PER_MIGRATION_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TIMEOUT_PER_GIB_S_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_MAX_FIELD_NUMBER: _ClassVar[int]
    session: str
    image: str
    vm: str
    data_address: str
    control_address: str
    postcopy: Postcopy
    manual_switchover: bool
    max_downtime_ms: int
    bandwidth_per_migration: int
    completion_timeout_per_gib_s: int
    progress_timeout_s: int
    rounds_max: int
    def __init__(self, session: _Optional[str] = ..., image: _Optional[str] = ..., vm: _Optional[str] = ..., data_address: _Optional[str] = ..., control_address: _Optional[str] = ..., postcopy: _Optional[_Union[Postcopy, str]] = ..., manual_switchover: bool = ..., max_downtime_ms: _Optional[int] = ..., bandwidth_per_migration: _Optional[int] = ..., completion_timeout_per_gib_s: _Optional[int] = ..., progress_timeout_s: _Optional[int] = ..., rounds_max: _Optional[int] = ...) -> None: ...

class Arrivals(_message.Message):
    __slots__ = ("cell_pages", "whole_after_ms", "wait_us_max", "waits")
    CELL_PAGES_FIELD_NUMBER: _ClassVar[int]
    WHOLE_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_MAX_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    cell_pages: int
    whole_after_ms: _containers.RepeatedScalarFieldContainer[int]
    wait_us_max: _containers.RepeatedScalarFieldContainer[int]
    waits: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, cell_pages: _Optional[int] = ..., whole_after_ms: _Optional[_Iterable[int]] = ..., wait_us_max: _Optional[_Iterable[int]] = ..., waits: _Optional[_Iterable[int]] = ...) -> None: ...

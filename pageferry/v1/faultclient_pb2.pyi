# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
from pageferry.v1 import migrations_pb2 as _migrations_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

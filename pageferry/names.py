# SPDX-License-Identifier: Apache-2.0
"""What an image may be called, and a VM that is served as one: whatever can be read in a log."""

from typing import Final

from pageferry.limits import IMAGE_NAME_BYTES_MAX

IMAGE_NAME_RULE: Final = f"1 to {IMAGE_NAME_BYTES_MAX} bytes, all of them printable"


def is_image_name(name: str) -> bool:
    """Bytes that are no UTF-8 (surrogates, from a command line) are not printable."""
    return name.isprintable() and 1 <= len(name.encode()) <= IMAGE_NAME_BYTES_MAX

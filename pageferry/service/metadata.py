# SPDX-License-Identifier: Apache-2.0
"""What a target shows with each of its calls, on both ports: the METADATA rules of pages.proto, for the
control ports, which Python serves. The token itself is never kept and never logged.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pageferry.limits import TOKEN_BYTES
from pageferry.reasons import PageferryError, Reason

AUTHORIZATION: Final = "authorization"
SESSION: Final = "pageferry-session"
TARGET: Final = "pageferry-target"
EPOCH: Final = "pageferry-epoch"
BEARER: Final = "Bearer "
# base64url without its padding
ENCODED: Final = re.compile(r"[A-Za-z0-9_-]{43}")
TARGET_FORM: Final = re.compile(r"[0-9a-f]{16}")
EPOCH_FORM: Final = re.compile(r"[1-9][0-9]{0,19}")
EPOCH_END: Final = 1 << 64

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]


def not_allowed() -> PageferryError:
    """One sentence for all that it may be: who has no token learns nothing."""
    return PageferryError(Reason.NOT_ALLOWED, "there is no such session, or not with this token")


@dataclass(frozen=True, slots=True)
class Shown:
    """By a target. `target` and `epoch` are read once the token is found right."""

    session: str
    token: bytes = field(repr=False)
    target_text: str
    epoch_text: str

    def has(self, token_sha256: bytes) -> bool:
        return hmac.compare_digest(hashlib.sha256(self.token).digest(), token_sha256)

    def target(self) -> int:
        """PageferryError: it is none."""
        if TARGET_FORM.fullmatch(self.target_text) is None or int(self.target_text, 16) == 0:
            raise _malformed(TARGET, "16 hexadecimal digits, not all 0")
        return int(self.target_text, 16)

    def epoch(self) -> int:
        """PageferryError: it is none."""
        if EPOCH_FORM.fullmatch(self.epoch_text) is None or int(self.epoch_text) >= EPOCH_END:
            raise _malformed(EPOCH, "a whole number from 1 on")
        return int(self.epoch_text)


def shown(metadata: Metadata | None) -> Shown | None:
    """None: no token is shown, so no target calls. NOT_ALLOWED: what is shown is no token."""
    fields = {key: value for key, value in metadata or () if isinstance(value, str)}
    if AUTHORIZATION not in fields:
        return None
    return Shown(
        session=fields.get(SESSION, ""),
        token=token_of(fields[AUTHORIZATION]),
        target_text=fields.get(TARGET, ""),
        epoch_text=fields.get(EPOCH, ""),
    )


def token_of(authorization: str) -> bytes:
    """NOT_ALLOWED: it is no token."""
    encoded = authorization.removeprefix(BEARER)
    if encoded == authorization or ENCODED.fullmatch(encoded) is None:
        raise not_allowed()
    try:
        token = base64.b64decode(encoded + "=", altchars=b"-_", validate=True)
    except binascii.Error:
        raise not_allowed() from None
    if len(token) != TOKEN_BYTES:
        raise not_allowed()
    return token


def _malformed(key: str, form: str) -> PageferryError:
    return PageferryError(Reason.BAD_REQUEST, f"the metadata {key} is not {form}")

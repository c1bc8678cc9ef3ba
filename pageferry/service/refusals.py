# SPDX-License-Identifier: Apache-2.0
"""What a call that has failed means, for whoever has made it."""

from typing import Any

import grpc

from pageferry.reasons import REASON_TRAILER, PageferryError, Reason, reason_from_status


def refused(error: grpc.RpcError, who: str) -> PageferryError:
    """A deadline of ours is TOO_SLOW, though no server said so."""
    code = error.code()
    metadata: Any = error.trailing_metadata() or ()  # a unary call's are named tuples, a stream's plain ones
    trailers = {key: str(value) for key, value in metadata}
    name = trailers.get(REASON_TRAILER)
    reason = reason_from_status(code.value[0], name)
    if name is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        reason = Reason.TOO_SLOW
    return PageferryError(reason, f"{who}: {error.details() or code.name}")

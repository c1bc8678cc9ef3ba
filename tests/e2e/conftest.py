# SPDX-License-Identifier: Apache-2.0
"""What the tests of moves share: guests that are booted once, and both services, started once.

Around every move both services are looked at from outside: after it they hold what they held before. What
this file needs is imported when a test asks for it: most tests here ask for nothing of it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.move_guests import Guests
    from tests.support.move_pair import Pair, Pairs, Vms


@pytest.fixture(scope="session")
def guests() -> "Iterator[Guests]":
    from tests.support.move_guests import Guests
    from tests.support.ramfile import run_folder

    with run_folder() as folder:
        yield Guests(folder)


@pytest.fixture(scope="session")
def pairs(guests: "Guests") -> "Iterator[Pairs]":
    from tests.support.move_pair import Pairs

    with Pairs(guests) as made:
        yield made


@pytest.fixture
def pair(pairs: "Pairs") -> "Iterator[Pair]":
    """Both services; afterwards they hold no more descriptors, threads, mappings, bytes and sockets."""
    with pairs.unchanged() as pair:
        yield pair


@pytest.fixture
def vms(pair: "Pair", guests: "Guests") -> "Iterator[Vms]":
    """A guest that beats at the source, a VMM that waits for it at the target."""
    from tests.support.move_guests import LIGHT
    from tests.support.move_pair import Vms

    with Vms(pair, guests.saved(LIGHT)) as made:
        yield made

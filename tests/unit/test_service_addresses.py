# SPDX-License-Identifier: Apache-2.0
"""Addresses to listen on: read, judged, bound; and what is said when one cannot be had."""

import os
import socket
import stat
from pathlib import Path

import pytest

from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address, bound, listening, local_or_agreed, try_listening


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7850", Address("127.0.0.1", 7850)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
        ("pages.example:1", Address("pages.example", 1)),
        ("unix:/run/pages.sock", Address(path=Path("/run/pages.sock"))),
    ],
)
def test_an_address_reads_as_it_is_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "7850", ":7850", "host", "host:", "host:65536", "host:-1", "host:http", "host:\u0663"),
        *("::1:7850", "[host]:1", "[::1]", "[]:1"),
        *("unix:", "unix:run.sock", "unix:@abstract", f"unix:/{'x' * 107}"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(PageferryError) as caught:
        Address.parse(text)
    assert caught.value.reason is Reason.BAD_REQUEST
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/a", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_without_tls_only_this_host_is_served(text: str, local: bool) -> None:
    address = Address.parse(text)
    assert address.local is local
    assert local_or_agreed(text, insecure_network=True) == address
    if local:
        assert local_or_agreed(address, insecure_network=False) == address
        return
    with pytest.raises(PageferryError) as caught:
        local_or_agreed(text, insecure_network=False)
    assert caught.value.reason is Reason.NOT_ALLOWED
    assert text in caught.value.message
    assert "--insecure-network" in caught.value.remedy


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0"])
def test_port_0_becomes_one(text: str) -> None:
    asked = Address.parse(text)
    with listening(asked) as made:
        address = bound(made, asked)
        assert address.host == asked.host
        assert address.port > 0
        with socket.create_connection((address.host, address.port)):
            pass


def test_an_address_is_never_shared() -> None:
    with listening(Address("127.0.0.1", 0)) as made:
        taken = bound(made, Address("127.0.0.1", 0))
        for attempt in (listening, try_listening):
            with pytest.raises(PageferryError) as caught:
                attempt(taken)
            assert caught.value.reason is Reason.GOING_AWAY
            assert str(taken) in caught.value.message
            assert "in use" in caught.value.message
    try_listening(taken)


def test_an_address_of_another_host() -> None:
    with pytest.raises(PageferryError) as caught:
        listening(Address("192.0.2.1", 0))  # a network for documents
    assert caught.value.reason is Reason.BAD_REQUEST
    assert "of this host" in caught.value.remedy


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(PageferryError) as caught:
        listening(Address("nobody.invalid", 0))
    assert caught.value.reason is Reason.BAD_REQUEST


def test_a_unix_socket_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Address(path=tmp_path / "socket")
    umask = os.umask(0)
    monkeypatch.setattr(os, "umask", no_umask)
    try:
        with listening(asked) as made:
            assert bound(made, asked) == asked
            assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600
    finally:
        monkeypatch.undo()
        os.umask(umask)


def no_umask(_mask: int) -> int:
    raise AssertionError("the umask is every thread's: what another one makes meanwhile would have it")


def test_a_socket_that_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    asked = Address(path=tmp_path / "socket")
    listening(asked).close()
    listening(asked).close()
    try_listening(asked)
    assert not list(tmp_path.iterdir())


def test_a_live_unix_socket_is_left_alone(tmp_path: Path) -> None:
    asked = Address(path=tmp_path / "socket")
    with listening(asked) as made:
        for attempt in (listening, try_listening):
            with pytest.raises(PageferryError, match="in use"):
                attempt(asked)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(asked.path))
            made.accept()[0].close()


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(PageferryError):
        listening(Address(path=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PageferryError) as caught:
        listening(Address(path=tmp_path / "none" / "socket"))
    assert caught.value.reason is Reason.BAD_REQUEST
    assert "folder" in caught.value.remedy

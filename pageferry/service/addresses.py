# SPDX-License-Identifier: Apache-2.0
"""Where our services listen: HOST:PORT, [V6]:PORT or unix:/PATH, and which of those are safe without TLS."""

import ipaddress
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click

from pageferry.limits import LISTEN_BACKLOG_MAX
from pageferry.reasons import PageferryError, Reason


@dataclass(frozen=True, slots=True)
class Address:
    host: str = ""
    port: int = 0
    path: Path | None = None  # a unix socket

    @classmethod
    def parse(cls, text: str) -> Self:
        """PageferryError: it is none."""
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:"))
            if not path.is_absolute():
                raise _refused(f"{text!r} names no absolute path", "give unix:/path/of/socket")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise _refused(f"{text!r} is no address", "give HOST:PORT or unix:/path")
        return cls(host=host.removeprefix("[").removesuffix("]"), port=int(port))

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Nobody beyond this host reaches it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _refused(message: str, remedy: str) -> PageferryError:
    return PageferryError(Reason.BAD_REQUEST, message, remedy)


def local_or_agreed(text: str, *, insecure_network: bool) -> Address:
    """The address, if it is this host's own or the operator has said that the network may be trusted."""
    address = Address.parse(text)
    if not address.local and not insecure_network:
        raise PageferryError(
            Reason.NOT_ALLOWED,
            f"{text} can be reached from other hosts, and without TLS guest memory would be readable there",
            "listen on loopback or a unix socket, or add --insecure-network on a network that is yours alone",
        )
    return address


def insecure_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--insecure-network, the same at every command that listens."""
    return click.option(
        "--insecure-network",
        is_flag=True,
        help="Allow addresses that other hosts reach: without TLS whoever reaches a port reads memory.",
    )(command)


def listening(address: Address) -> socket.socket:
    """A bound, listening socket. PageferryError: it cannot be had. A unix socket that a dead process left is
    replaced."""
    family = socket.AF_UNIX if address.path is not None else socket.AF_INET
    where: str | tuple[str, int]
    if address.path is not None:
        where = str(address.path)
        if (
            address.path.exists()
            and stat.S_ISSOCK(address.path.stat().st_mode)
            and not _answers(address.path)
        ):
            address.path.unlink()
    else:
        where = (address.host, address.port)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if address.path is None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(LISTEN_BACKLOG_MAX)
    except OSError as error:
        made.close()
        raise PageferryError(
            Reason.GOING_AWAY,
            f"cannot listen on {address}: {error.strerror or error}",
            "is it in use? name another",
        ) from error
    return made


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def bound(made: socket.socket, asked: Address) -> Address:
    """What the kernel made of it: port 0 has become one."""
    return asked if asked.path is not None else Address(asked.host, made.getsockname()[1])

# SPDX-License-Identifier: Apache-2.0
"""Where our services listen: HOST:PORT, [V6]:PORT or unix:/PATH, and which of those are safe without TLS.

A port is bound here once, and never shared: a second server on the same address is an error, not half of the
calls. A unix socket is made with mode 0600; one that a dead process left is replaced, a live one is not.
"""

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import click

from pageferry.limits import LISTEN_BACKLOG_MAX
from pageferry.reasons import PageferryError, Reason

UNIX: Final = "unix:"
# sun_path, its final zero aside
UNIX_PATH_BYTES_MAX: Final = 107
OWNER_ONLY: Final = 0o600


@dataclass(frozen=True, slots=True)
class Address:
    host: str = ""
    port: int = 0
    path: Path | None = None  # a unix socket

    @classmethod
    def parse(cls, text: str) -> Self:
        """PageferryError: it is none."""
        if text.startswith(UNIX):
            path = Path(text.removeprefix(UNIX))
            if not path.is_absolute():
                raise _refused(f"{text!r} names no absolute path", "give unix:/path/of/socket")
            if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
                raise _refused(
                    f"the path of the socket {text!r} is longer than {UNIX_PATH_BYTES_MAX} bytes",
                    "choose a shorter one",
                )
            return cls(path=path)
        host, _, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        bracketed = host == f"[{bare}]"
        number = port.isascii() and port.isdecimal() and int(port) <= 65535
        if not bare or not number or bracketed != (":" in bare):
            raise _refused(f"{text!r} is no address", "give HOST:PORT, [IPV6]:PORT or unix:/path/of/socket")
        return cls(host=bare, port=int(port))

    def __str__(self) -> str:
        if self.path is not None:
            return f"{UNIX}{self.path}"
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


class AddressType(click.ParamType[Address]):
    """An option that takes an address: what is none is a usage error."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(value)
        except PageferryError as error:
            self.fail(str(error), param, context)


def local_or_agreed(asked: str | Address, *, insecure_network: bool) -> Address:
    """The address, if it is this host's own or the operator has said that the network may be trusted."""
    address = asked if isinstance(asked, Address) else Address.parse(asked)
    if not address.local and not insecure_network:
        raise PageferryError(
            Reason.NOT_ALLOWED,
            f"{address} can be reached from other hosts, and without TLS they could read guest memory there",
            "listen on loopback or a unix socket, or add --insecure-network on a network that is yours alone",
        )
    return address


def insecure_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--insecure-network, the same at every command that listens."""
    return click.option(
        "--insecure-network",
        is_flag=True,
        help="Allow addresses that other hosts reach. There is no TLS yet: who reaches a port may use it.",
    )(command)


# -------------------------------------------------------------------------------------------------- listening


def listening(address: Address) -> socket.socket:
    """A bound, listening socket. PageferryError: it cannot be had, and why."""
    try:
        return _listening_unix(address.path) if address.path is not None else _listening_tcp(address)
    except OSError as error:
        raise _not_bound(address, error) from error


def bound(made: socket.socket, asked: Address) -> Address:
    """What the kernel made of it: port 0 has become one."""
    return asked if asked.path is not None else Address(asked.host, made.getsockname()[1])


def try_listening(address: Address) -> None:
    """Before a library binds by itself, which says less and checks less. PageferryError: it cannot, and why.

    A unix socket that nobody answers on is gone after this.
    """
    listening(address).close()
    if address.path is not None:
        address.path.unlink()


def _listening_tcp(address: Address) -> socket.socket:
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
    )
    # a name such as localhost may have both; clients try IPv4 as well as IPv6, some only the former
    family, kind, protocol, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    made = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after past connections
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # [::] takes IPv4 too
        made.bind(where)
        made.listen(LISTEN_BACKLOG_MAX)
    except BaseException:
        made.close()
        raise
    return made


def _listening_unix(path: Path) -> socket.socket:
    _remove_dead(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(made.fileno(), OWNER_ONLY)  # bind takes the socket's mode (Linux): no umask is set
        made.bind(str(path))
        made.listen(LISTEN_BACKLOG_MAX)
    except BaseException:
        made.close()
        raise
    return made


def _remove_dead(path: Path) -> None:
    """A socket that nobody answers on is removed; whatever else is there lets bind fail."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


def _not_bound(address: Address, error: OSError) -> PageferryError:
    message = f"cannot listen on {address}: {error.strerror or error}"
    if isinstance(error, socket.gaierror):
        return PageferryError(Reason.BAD_REQUEST, message, "name an address of this host")
    match error.errno:
        case errno.EADDRINUSE:
            return PageferryError(
                Reason.GOING_AWAY, message, "end what listens there, or choose another address (port 0: any)"
            )
        case errno.EACCES | errno.EPERM:
            return PageferryError(
                Reason.NOT_ALLOWED, message, "choose a port above 1023, or a folder that this user may write"
            )
        case errno.ENOENT | errno.ENOTDIR:
            return PageferryError(Reason.BAD_REQUEST, message, f"make the folder {address.path} is to lie in")
        case errno.EADDRNOTAVAIL:
            return PageferryError(Reason.BAD_REQUEST, message, "name an address of this host")
    return PageferryError(Reason.GOING_AWAY, message, "choose another address")

# SPDX-License-Identifier: Apache-2.0
"""Two private network namespaces joined by a veth pair: a source host and a destination host on one machine.

The destination may have a mount namespace of its own as well, where given folders are covered by an empty
file system: what runs there cannot open what lies in them. Each namespace is held by a process that ends with
this one (its standard input closes), so nothing has a name in the system and nothing is left behind, whatever
kills us.

    with host_pair(hide=[image.parent], rate_mbit=1000) as pair:
        subprocess.Popen([*pair.source.prefix, "pageserver", ..., f"--listen={pair.source.address}:0"])
        Qemu(..., prefix=pair.destination.prefix)
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "pageferry0"  # on both sides
SOURCE_ADDRESS = "192.0.2.1"  # of the range kept for documentation: seen in these two namespaces only
DESTINATION_ADDRESS = "192.0.2.2"
TBF_BURST_BYTES = 256 << 10
TBF_LATENCY_MS = 50
# What is mounted here must not show elsewhere. In a chroot "/" may be no mount, so the mount that holds the
# folder is made private (a folder of ramfile.run_folder lies on /dev/shm, which always is one).
HOLD = """
for folder; do
    mount --make-private "$(findmnt --first-only --noheadings --output TARGET --target "$folder")" || exit 1
    mount -t tmpfs -o ro,size=4k,mode=0 none "$folder" || exit 1
done
echo held
exec cat
"""


class NamespaceError(Exception):
    """The namespaces cannot be made here (they need root, iproute2 and util-linux); the text holds what
    was said.
    """


@dataclass(frozen=True)
class Host:
    pid: int  # of the process that holds the namespaces
    address: str

    @property
    def prefix(self) -> list[str]:
        """Put before a command: it runs in these namespaces, under the same PID, in its working folder and
        root.
        """
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--root", "--wd", "--"]

    def limit(self, rate_mbit: int | None) -> None:
        """What leaves this host goes through a token bucket of that rate; None: as fast as it goes."""
        qdisc = ["tc", "qdisc"]
        if rate_mbit is None:
            run([*self.prefix, *qdisc, "delete", "dev", INTERFACE, "root"])
            return
        bucket = ["rate", f"{rate_mbit}mbit", "burst", str(TBF_BURST_BYTES), "latency", f"{TBF_LATENCY_MS}ms"]
        run([*self.prefix, *qdisc, "replace", "dev", INTERFACE, "root", "tbf", *bucket])


@dataclass(frozen=True)
class HostPair:
    source: Host
    destination: Host


@contextmanager
def host_pair(*, hide: Sequence[Path] = (), rate_mbit: int | None = None) -> Iterator[HostPair]:
    """`hide`: folders that are empty at the destination. `rate_mbit`: of each direction of the link."""
    with ExitStack() as stack:
        source = Host(stack.enter_context(_held_namespaces(())), SOURCE_ADDRESS)
        destination = Host(stack.enter_context(_held_namespaces(hide)), DESTINATION_ADDRESS)
        ends = ([INTERFACE, "netns", str(host.pid)] for host in (source, destination))
        run(["ip", "link", "add", *next(ends), "type", "veth", "peer", *next(ends)])
        for host in (source, destination):
            run([*host.prefix, "ip", "address", "add", f"{host.address}/24", "dev", INTERFACE])
            for interface in (INTERFACE, "lo"):
                run([*host.prefix, "ip", "link", "set", interface, "up"])
            if rate_mbit is not None:
                host.limit(rate_mbit)
        yield HostPair(source, destination)


@contextmanager
def _held_namespaces(hide: Sequence[Path]) -> Iterator[int]:
    unshare = ["unshare", "--net", "--mount", "--propagation", "unchanged"]
    argv = [*unshare, "sh", "-c", HOLD, "hold", *map(str, hide)]
    try:
        holder = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
        )
    except FileNotFoundError as error:
        raise NamespaceError("unshare is not here: install the package util-linux") from error
    with holder:
        try:
            assert holder.stdout is not None and holder.stderr is not None
            if holder.stdout.readline() != b"held\n":
                raise NamespaceError(f"no private namespaces: {holder.stderr.read().decode().strip()}")
            yield holder.pid
        finally:
            holder.kill()


def run(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NamespaceError(f"{argv[0]} is not here: install packages iproute2 and util-linux") from error
    if done.returncode != 0:
        raise NamespaceError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    return done.stdout

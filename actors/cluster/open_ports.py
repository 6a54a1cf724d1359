"""Listening: which TCP ports some processes keep open to more than their own machine."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class OpenPort:
    """A port that can be reached over the network."""

    process: str
    pid: int
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.process} (process {self.pid}) listens on {self.address} port {self.port}"


def beyond_loopback(pids: Iterable[int]) -> list[OpenPort]:
    """Where these processes listen other than on the loopback addresses; empty without /proc."""
    try:
        ports = {
            **_ports("/proc/net/tcp"),
            **_ports("/proc/net/tcp6"),
        }
    except OSError:
        return []
    found = []
    for pid in pids:
        for inode in _sockets(pid) & ports.keys():
            address, port = ports[inode]
            if not is_loopback(address):
                found.append(OpenPort(_title(pid), pid, str(address), port))
    return sorted(found, key=lambda one: (one.pid, one.port))


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_loopback(address: _Address) -> bool:
    """Whether only this machine reaches the address."""
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _ports(table: str) -> dict[str, tuple[_Address, int]]:
    """The listening sockets of this network namespace by inode."""
    if not os.path.exists(table) and table.endswith("6"):
        return {}  # a kernel without IPv6
    with open(table) as lines:
        rows = [line.split() for line in lines][1:]
    return {row[9]: _place(row[1]) for row in rows if row[3] == _LISTEN}


def _place(text: str) -> tuple[_Address, int]:
    """An address as the kernel writes it: hexadecimal, in words of this machine's byte order."""
    address, port = text.split(":")
    raw = bytes.fromhex(address)
    words = (raw[at : at + 4] for at in range(0, len(raw), 4))
    if sys.byteorder == "little":
        words = (word[::-1] for word in words)
    return ipaddress.ip_address(b"".join(words)), int(port, 16)


def _sockets(pid: int) -> set[str]:
    found: set[str] = set()
    try:
        links = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for link in links:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{link}")
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _title(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            title = file.read(4096).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "a process"
    return title.split(" ")[0].rpartition("/")[2] or "a process"

"""What only a `*` covers is reached at public addresses alone, and metadata nowhere by accident."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstream import upstream

import dynamic_workflows as dw
from dynamic_workflows.loaders.sdk import ip_ranges

# IANA's special-purpose registries of IPv4 and IPv6 as of 2025-10, each prefix in full; what is
# judged by the address that it carries (mapped, NAT64, 6to4) has tests of its own below.
REGISTERED = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24
192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24
198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
::1/128 ::/128 ::/96 ::ffff:0:0:0/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32
2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28
2001:20::/28 2001:30::/28 2001:db8::/32 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10
fec0::/10 ff00::/8 3ffe::/16 200::/7
""".split()
PUBLIC_V4 = """
1.1.1.1 8.8.8.8 93.184.215.14 100.63.0.1 172.15.0.1 172.32.0.1 192.0.1.1 192.167.255.255
198.17.0.1 198.20.0.1 223.255.255.255
""".split()
PRIVATE_V4 = """
127.0.0.1 10.1.2.3 169.254.169.254 192.168.0.1 168.63.129.16 100.100.100.200 0.0.0.0
255.255.255.255 224.0.0.1
""".split()
CARRYING: dict[str, Callable[[int], int]] = {
    "mapped": lambda v4: 0xFFFF << 32 | v4,
    "NAT64": lambda v4: 0x64FF9B << 96 | v4,
    "6to4": lambda v4: 0x2002 << 112 | v4 << 80 | 1,
    "ISATAP": lambda v4: 0x2606_4700 << 96 | 0x5EFE << 32 | v4,
    "ISATAP, global": lambda v4: 0x2606_4700 << 96 | 0x0200_5EFE << 32 | v4,
}
METADATA = """
169.254.169.254 168.63.129.16 169.254.170.2 169.254.170.23 100.100.100.200 192.0.0.192
fd00:ec2::254 fd20:ce::254 fe80::a9fe:a9fe ::ffff:169.254.169.254 ::ffff:0:169.254.169.254
::169.254.169.254 64:ff9b::a9fe:a9fe 64:ff9b::a83f:8110 64:ff9b:1::a83f:8110 2002:a83f:8110::1
2a00:1:2:3:4:5:a9fe:a9fe 2606:4700::5efe:a83f:8110
""".split()


@pytest.mark.parametrize("prefix", REGISTERED)
def test_nothing_that_is_registered_for_a_purpose_is_public(prefix: str) -> None:
    network = ipaddress.ip_network(prefix)
    step = max(1, network.num_addresses // 64)
    tried = [network[i] for i in range(0, network.num_addresses, step)] + [network[-1]]
    assert not [str(address) for address in tried if ip_ranges.is_public(str(address))]


@pytest.mark.parametrize("v4", PUBLIC_V4)
def test_neighbours_of_what_is_registered_are_public(v4: str) -> None:
    assert ip_ranges.is_public(v4)


@pytest.mark.parametrize("notation", CARRYING)
def test_an_address_is_judged_by_the_one_that_it_carries(notation: str) -> None:
    def carrying(v4: str) -> str:
        return str(ipaddress.IPv6Address(CARRYING[notation](int(ipaddress.IPv4Address(v4)))))

    assert all(ip_ranges.is_public(carrying(v4)) for v4 in PUBLIC_V4)
    assert not any(ip_ranges.is_public(carrying(v4)) for v4 in PRIVATE_V4)


@given(st.ip_addresses(v=6))
def test_beyond_what_is_handed_out_no_address_of_ipv6_is_public(address: Any) -> None:
    if ip_ranges.is_public(str(address)):
        assert address in ip_ranges.GLOBAL_V6 or any(address in n for n in ip_ranges.CARRIERS)
        assert address.ipv4_mapped or address.is_global or address.sixtofour


@given(st.ip_addresses())
def test_what_the_standard_library_calls_private_never_is_public(address: Any) -> None:
    if address.version == 6 and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_private or address.is_multicast or address.is_reserved:
        is_nat64 = address in ipaddress.ip_network("64:ff9b::/96")
        assert is_nat64 or not ip_ranges.is_public(str(address))


def resolving(*answers: str) -> Callable[..., list[Any]]:
    """A resolver that answers the next of these at each look, and the last for ever."""
    waiting = list(answers)

    def resolve(host: str, port: int, **more: Any) -> list[Any]:
        address = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    return resolve


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that somebody connects to; nobody answers."""
    seen: list[str] = []

    class Dialling(socket.socket):
        def connect(self, address: Any) -> None:
            seen.append(address[0])
            raise ConnectionRefusedError("nobody is there")

    monkeypatch.setattr("socket.socket", Dialling)
    return seen


@pytest.mark.parametrize("named", ["http://*.example.com", "http://api.example.com"])
@pytest.mark.parametrize("address", METADATA)
async def test_no_name_that_resolves_to_metadata_leads_there(
    address: str, named: str, monkeypatch: pytest.MonkeyPatch, dialled: list[str]
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolving(address))
    with pytest.raises(dw.EgressDeniedError, match="has to be named"):
        await dw.AllowList(named).fetch(dw.Request("GET", "http://api.example.com/"))
    assert dialled == []


async def test_whoever_names_metadata_itself_reaches_it(
    monkeypatch: pytest.MonkeyPatch, dialled: list[str]
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolving("169.254.169.254"))
    for host in ("169.254.169.254", "metadata.google.internal"):
        gateway = dw.AllowList(f"http://{host}")
        with pytest.raises(ConnectionError):
            await gateway.fetch(dw.Request("GET", f"http://{host}/"))
    assert dialled == ["169.254.169.254"] * 2


@pytest.mark.parametrize("host", ["metadata.google.internal", "METADATA.google.internal."])
async def test_the_name_of_metadata_is_not_what_a_wildcard_means(
    host: str, monkeypatch: pytest.MonkeyPatch, dialled: list[str]
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolving("93.184.215.14"))
    gateway = dw.AllowList("http://*.google.internal")
    with pytest.raises(dw.EgressDeniedError, match="metadata"):
        await gateway.fetch(dw.Request("GET", f"http://{host}/"))
    assert dialled == []


async def test_a_name_that_changes_its_mind_is_connected_to_as_it_was_looked_at(
    monkeypatch: pytest.MonkeyPatch, dialled: list[str]
) -> None:
    # Public when it is looked at, private whenever anybody looks again.
    monkeypatch.setattr("socket.getaddrinfo", resolving("93.184.215.14", "169.254.169.254"))
    gateway = dw.AllowList("http://*.example.com")
    with pytest.raises(ConnectionError):
        await gateway.fetch(dw.Request("GET", "http://a.example.com/"))
    assert dialled == ["93.184.215.14"]


async def test_a_redirect_to_metadata_is_an_answer_and_asking_there_is_denied() -> None:
    with upstream() as server:
        gateway = dw.AllowList(server.host)
        assert (await gateway.fetch(dw.Request("GET", f"{server.host}/moved"))).status == 302
        assert len(server.seen) == 1
        with pytest.raises(dw.EgressDeniedError):
            await gateway.fetch(dw.Request("GET", "http://169.254.169.254/latest/meta-data/"))

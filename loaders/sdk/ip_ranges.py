"""Addresses: which IP addresses are of the internet at large, and which tell a machine's secrets.

The tables are those of IANA (special-purpose registries of IPv4 and IPv6, multicast, what IPv6 has
given up), kept here, since `ipaddress` knows fewer of them and others in each version of Python.
All that is registered counts as not public, reachable or not: no tenant has business there. Of IPv6
only 2000::/3 is handed out to the internet. An address that carries one of IPv4 is judged by that
one as well, so that no notation and no translator leads to a private network.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

SPECIAL_V4: tuple[IPv4Network, ...] = tuple(
    IPv4Network(row.split()[0])
    for row in """
    0.0.0.0/8           this network
    10.0.0.0/8          private
    100.64.0.0/10       shared by the customers of a carrier
    127.0.0.0/8         loopback
    161.26.0.0/16       services inside a cloud (IBM), announced nowhere
    166.8.0.0/14        services inside a cloud (IBM), announced nowhere
    168.63.129.16/32    services of a cloud for its machines (Azure)
    169.254.0.0/16      link-local
    172.16.0.0/12       private
    192.0.0.0/24        protocols of the IETF: DS-Lite, port control, discovery of NAT64
    192.0.2.0/24        documentation
    192.31.196.0/24     sinks for names of private addresses (AS112)
    192.52.193.0/24     automatic multicast tunnels
    192.88.99.0/24      relays of 6to4
    192.168.0.0/16      private
    192.175.48.0/24     sinks for names of private addresses (AS112)
    198.18.0.0/15       benchmarks
    198.51.100.0/24     documentation
    203.0.113.0/24      documentation
    224.0.0.0/4         multicast
    240.0.0.0/4         reserved, and the limited broadcast
    """.strip().splitlines()
)

GLOBAL_V6 = IPv6Network("2000::/3")
"""What is handed out of IPv6; everything beyond it has a purpose of its own, or none yet."""

SPECIAL_V6: tuple[IPv6Network, ...] = tuple(
    IPv6Network(row.split()[0])
    for row in """
    ::/96                 IPv4-compatible, unspecified, loopback
    ::ffff:0:0:0/96       IPv4-translated
    64:ff9b:1::/48        translation to IPv4 inside a network
    100::/64              discarded
    100:0:0:1::/64        dummy prefix
    200::/7               addresses of OSI
    2001::/23             protocols of the IETF: Teredo, benchmarks, ORCHID, DRIP, port control
    2001:db8::/32         documentation
    2620:4f:8000::/48     sinks for names of private addresses (AS112)
    3ffe::/16             the 6bone
    3fff::/20             documentation
    5f00::/16             segment identifiers (SRv6)
    fc00::/7              unique local
    fe80::/10             link-local
    fec0::/10             site-local
    ff00::/8              multicast
    """.strip().splitlines()
)

# By prefix: how many bits stand behind the address of IPv4 that it carries.
CARRIERS: dict[IPv6Network, int] = {
    IPv6Network("::ffff:0:0/96"): 0,  # mapped
    IPv6Network("64:ff9b::/96"): 0,  # translated by NAT64
    IPv6Network("2002::/16"): 80,  # 6to4
}
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""What stands before an address of IPv4 in the interface part of ISATAP, in any network."""

METADATA: frozenset[Address] = frozenset(
    ipaddress.ip_address(row.split()[0])
    for row in """
    169.254.169.254     most clouds
    169.254.169.253     AWS: names
    169.254.169.123     AWS: time
    169.254.170.2       AWS: credentials of containers
    169.254.170.23      AWS: credentials of pods
    169.254.0.23        Tencent
    169.254.42.42       Scaleway
    168.63.129.16       Azure
    100.100.100.200     Alibaba
    192.0.0.192         Oracle
    192.80.8.124        Equinix
    fd00:ec2::254       AWS
    fd00:ec2::253       AWS: names
    fd00:ec2::123       AWS: time
    fd00:ec2::23        AWS: credentials of pods
    fd20:ce::254        Google
    fd00:42::42         Scaleway
    fd00:c1::a9fe:a9fe  Oracle
    fe80::a9fe:a9fe     OpenStack
    """.strip().splitlines()
)
"""Where a machine of a cloud asks who it is, and is given the keys of its role."""

METADATA_NAMES = frozenset(
    """
    instance-data instance-data.ec2.internal metadata metadata.goog metadata.google.internal
    metadata.packet.net metadata.platformequinix.com metadata.tencentyun.com
    api.metadata.cloud.ibm.com
    """.split()
)


def is_public(text: str) -> bool:
    """Whether an address is of the internet at large, by whatever way it is written.

    Raises ValueError for what is no address.
    """
    return not is_metadata(text) and _is_public(_address(text))


def is_metadata(text: str) -> bool:
    """Whether an address, or one that it carries, is a cloud's for its machines' own secrets."""
    address = _address(text)
    if isinstance(address, IPv6Address):
        # Whatever prefix a network translates with, most often the address is at the end.
        tail = IPv4Address(int(address) & 0xFFFF_FFFF)
        return address in METADATA or tail in METADATA or bool(METADATA & set(_carried(address)))
    return address in METADATA


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address not in METADATA and not any(address in network for network in SPECIAL_V4)
    if not all(_is_public(carried) for carried in _carried(address)):
        return False
    if any(address in network for network in CARRIERS):
        return True
    return address in GLOBAL_V6 and not any(address in network for network in SPECIAL_V6)


def _carried(address: IPv6Address) -> list[IPv4Address]:
    """The addresses of IPv4 that one of IPv6 carries."""
    number = int(address)
    found = [
        IPv4Address(number >> behind & 0xFFFF_FFFF)
        for network, behind in CARRIERS.items()
        if address in network
    ]
    if number >> 32 & 0xFFFF_FFFF in _ISATAP:
        found.append(IPv4Address(number & 0xFFFF_FFFF))
    return found


def _address(text: str) -> Address:
    # A zone says by which interface, and not to whom.
    return ipaddress.ip_address(text.partition("%")[0])

"""Which addresses are on the public internet: the only ones that a URL of somebody else may lead to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network
from typing import Final

__all__ = ["is_public"]

_NOT_V4: Final = tuple(
    map(
        ip_network,
        (
            "100.64.0.0/10",  # carriers' NAT
            "192.0.0.0/24",  # protocol assignments, of which Python knows a part
            "192.88.99.0/24",  # relays to 6to4, given up
        ),
    )
)
_GLOBAL_V6: Final = IPv6Network("2000::/3")  # all that has been given out to anybody
_NOT_V6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, ORCHID
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
        ),
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_6TO4: Final = IPv6Network("2002::/16")


def is_public(text: str) -> bool:
    """Tell whether a numeric address, as a socket has it, is a public one of a single machine. The IPv4 address inside
    of an IPv6 one is what counts: there the packets end."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return _is_public_v4(address)
    number = int(address)
    if address in _NAT64:
        return _is_public_v4(IPv4Address(number & 0xFFFFFFFF))
    if address in _6TO4:
        return _is_public_v4(IPv4Address(number >> 80 & 0xFFFFFFFF))
    # Mapped (::ffff:0:0/96), private, link-local, multicast and all the reserved ones are outside of it.
    return address in _GLOBAL_V6 and not any(address in network for network in _NOT_V6) and not address.scope_id


def _is_public_v4(address: IPv4Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_V4)
    )

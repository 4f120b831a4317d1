"""Where the processes that a test has started listen."""

from contextlib import suppress
from ipaddress import ip_address

import psutil  # type: ignore[import-untyped]


def listening(process: psutil.Process) -> dict[int, str]:
    """The ports that a process and its descendants listen on, IPv4 and IPv6, with their addresses."""
    found = {}
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for connection in member.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.port] = connection.laddr.ip
    return found


def is_loopback(text: str) -> bool:
    address = ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback

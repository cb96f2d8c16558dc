"""Names of hosts as people and Slurm write them: node[01-08,11],login1."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final

# More than any cluster has; a slip of the pen such as [1-100000000] must not fill the memory.
MOST_HOSTS: Final = 100_000

_RANGE: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
# A name or IPv4 address, or an IPv6 address, the latter in brackets where a port follows.
_NAMED: Final = re.compile(r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)(?::(?P<port>[0-9]{1,5}))?")
_IPV6: Final = re.compile(r"(?P<host>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*)")
_IPV6_IN_BRACKETS: Final = re.compile(r"\[" + _IPV6.pattern + r"\](?::(?P<port>[0-9]{1,5}))?")


def expand(text: str) -> list[str]:
    """Each host of a list with ranges; leading zeros stay. Raises ValueError for one that is no good."""
    found: list[str] = []
    for part in _parts(text):
        found += itertools.islice(_expand_one(part), MOST_HOSTS + 1 - len(found))
        if len(found) > MOST_HOSTS:
            raise ValueError(f"{text!r} stands for more than {MOST_HOSTS:,} hosts")
    return found


def target(host: str, port: int) -> str:
    """HOST:PORT as Prometheus wants it; a port in `host` counts more than `port`. Raises ValueError."""
    match = _IPV6_IN_BRACKETS.fullmatch(host) or _IPV6.fullmatch(host) or _NAMED.fullmatch(host)
    given = int(match.groupdict().get("port") or port) if match else 0
    if match is None or not 0 < given < 65536:
        raise ValueError(f"{host!r} is not a host, such as node01, node01:10288 or node[01-08]")
    return f"[{match['host']}]:{given}" if ":" in match["host"] else f"{match['host']}:{given}"


def _parts(text: str) -> list[str]:
    """What stands between commas and spaces that are in no brackets."""
    return re.findall(r"(?:\[[^\]]*\]?|[^\[\s,])+", text)


def _expand_one(text: str) -> Iterator[str]:
    before, opened, rest = text.partition("[")
    inside, closed, after = rest.partition("]")
    if not opened or ":" in inside:  # an IPv6 address
        yield text
        return
    if not closed:
        raise ValueError(f"{text!r} has a bracket that nothing closes")
    for piece in inside.split(","):
        match = _RANGE.fullmatch(piece.strip())
        first, last = (match[1], match[2] or match[1]) if match else ("1", "0")
        if int(first) > int(last):
            raise ValueError(f"{piece!r} in {text!r} is not a range, such as 01-08")
        for number in range(int(first), int(last) + 1):
            for tail in _expand_one(after):
                yield f"{before}{number:0{len(first)}}{tail}"

"""Who asks, as far as an address tells."""

import ipaddress

# An IPv6 address with its zone, brackets and a port is not longer; what is, is none.
_LONGEST = 100

UNKNOWN = "unknown"


def visitor_of(client_host: str | None, forwarded_for: str | None, proxies: int) -> str:
    """The visitor behind a request.

    Whoever sends a request can write anything into `X-Forwarded-For`; each proxy adds at its end
    the address that it was asked from. So with n proxies of ours in front, the n-th entry from
    the right is true and all before it may be made up.

    Args:
        client_host: Address that the connection comes from.
        forwarded_for: The request's `X-Forwarded-For`, several of them joined by commas.
        proxies: How many proxies of ours every request comes through, 0 for none.

    Returns:
        An IPv4 address; the /64 network of an IPv6 address, which is what one customer gets;
        or `unknown`, one for all, where neither is to be found. Of a request that came through
        fewer proxies, who was at the other end of its connection.
    """
    # From the right, and no further than needed: the header may be long.
    entries = forwarded_for.rsplit(",", proxies)[-proxies:] if forwarded_for and proxies else []
    through_all = 0 < proxies == len(entries)
    return _network(entries[0] if through_all else client_host or "")


def _network(text: str) -> str:
    try:
        address = ipaddress.ip_address(_bare(text.strip()) if len(text) <= _LONGEST else "")
    except ValueError:
        return UNKNOWN
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


def _bare(text: str) -> str:
    """An address without quotes, brackets, port and zone, which some proxies add."""
    text = text.strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return text.partition("%")[0]

"""Addresses of sources as they may be shown and logged."""

from __future__ import annotations

import re

_DRAWN = "test://"
"""What stands before its @ is a size."""


def without_password(address: str) -> str:
    """Leave user and password out of an address (RFC 3986, section 3.2.1).

    Args:
        address: A URI, a path or a name.

    Returns:
        The same without what stands between ``://`` and ``@``.
    """
    if address.startswith(_DRAWN):
        return address
    return re.sub(r"(?<=://)[^/?#]*@", "", address)

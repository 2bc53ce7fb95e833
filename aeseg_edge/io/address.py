"""Addresses of sources as they may be shown and logged."""

from __future__ import annotations

import re

_WITHOUT_USER = ("csi://", "file://", "pairs://", "test://", "v4l2://")
"""What stands before an @ there is a size or part of a path."""

_PIPELINE = "gst://"
_SECRETS = re.compile(
    r"""\s*\b(?:(?:user|proxy)-(?:id|pw)|username|password|passphrase)\s*=\s*"""
    r"""(?:"[^"]*"|'[^']*'|\S+)"""
)
"""Properties of GStreamer's network elements (rtspsrc, souphttpsrc, rtmp2src, srtsrc)."""


def without_password(address: str) -> str:
    """Leave user and password out of an address (RFC 3986, section 3.2.1).

    Args:
        address: A URI, a path or a name; a message that has one.

    Returns:
        The same without what stands between ``://`` and ``@``, and without the properties of a
        ``gst://`` pipeline that are there for it.
    """
    if address.startswith(_WITHOUT_USER):
        return address
    head = _PIPELINE if address.startswith(_PIPELINE) else ""
    shown = re.sub(r"(?<=://)[^/?#]*@", "", address.removeprefix(head))
    return head + (_SECRETS.sub("", shown) if head else shown)

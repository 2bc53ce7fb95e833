"""File names that are not UTF-8: Python holds their odd bytes as surrogates (PEP 383).

Reading and writing by Python works. OpenCV's own files do not: version 5 ends the process with a
segmentation fault, version 4 finds no such file. Text and JSON have no place for them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from aeseg_edge.errors import AesegError


def is_utf8(name: str | Path) -> bool:
    """Say whether a name, path or address can be written as UTF-8."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_name(name: str | Path, *, error: type[AesegError]) -> None:
    """Refuse a path, address or pipeline that is not UTF-8, before OpenCV is given it."""
    if not is_utf8(name):
        raise error(
            f"{without_password(str(name))} is not UTF-8, and OpenCV takes no other names",
            fix="Rename the file, or the folder that it is in.",
        )


def as_text(text: str) -> str:
    """Give text with a question mark in the place of each byte that is not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def to_json(data: Any, **options: Any) -> str:
    r"""Write JSON that can be encoded, with ``\u`` escapes where a name in it is not UTF-8.

    Python reads them back as they were. ``options`` are those of ``json.dumps``.
    """
    text = json.dumps(data, ensure_ascii=False, **options)
    return text if is_utf8(text) else json.dumps(data, **options)


_WITHOUT_USER = ("csi://", "file://", "pairs://", "test://", "v4l2://")
"""What stands before an @ there is a size or part of a path."""

_PIPELINE = "gst://"
_SECRETS = re.compile(
    r"""\s*\b(?:(?:user|proxy)-(?:id|pw)|username|password|passphrase)\s*=\s*"""
    r"""(?:"[^"]*"|'[^']*'|\S+)"""
)
"""Properties of GStreamer's network elements (rtspsrc, souphttpsrc, rtmp2src, srtsrc)."""


def without_password(address: str) -> str:
    """Leave user and password out of an address, or of a message that has one.

    That is what stands between ``://`` and ``@`` (RFC 3986, section 3.2.1), and the properties of
    a ``gst://`` pipeline that are there for it.
    """
    if address.startswith(_WITHOUT_USER):
        return address
    head = _PIPELINE if address.startswith(_PIPELINE) else ""
    shown = re.sub(r"(?<=://)[^/?#]*@", "", address.removeprefix(head))
    return head + (_SECRETS.sub("", shown) if head else shown)

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


def printable(text: str) -> str:
    """Give text with control characters spelled out: a name may hold some, for a terminal too."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f]", lambda found: found[0].encode("unicode_escape").decode(), text
    )


def to_json(data: Any, **options: Any) -> str:
    r"""Write JSON that can be encoded, with ``\u`` escapes where a name in it is not UTF-8.

    Python reads them back as they were. ``options`` are those of ``json.dumps``.
    """
    text = json.dumps(data, ensure_ascii=False, **options)
    return text if is_utf8(text) else json.dumps(data, **options)


_WITHOUT_USER = ("csi", "file", "pairs", "test", "v4l2")
"""What stands before an @ there is a size or part of a path."""

_PIPELINE = "gst://"
_SECRETS = re.compile(
    r"""\s*\b(?:(?:user|proxy)-(?:id|pw)|username|password|passphrase)\s*=\s*"""
    r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\S+)"""
)
"""Properties of GStreamer's network elements (rtspsrc, souphttpsrc, rtmp2src, srtsrc)."""

_ADDRESS = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://(\S+)")
_SPACED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s@/?#]+:[^\s@/?#]*\s.*@.*)", re.DOTALL)
"""A space in a password, where the address is all there is."""

_QUERY = re.compile(
    r"""([?&]\w*(?:pas|pwd|psw|token|secret|key|auth)\w*=)[^&\s"']+""", re.IGNORECASE
)
_HOST = re.compile(r"(\[[\da-f:.]+\]|localhost|[\w-]+(\.[\w-]+)+\.?)(:\d*)?", re.IGNORECASE)
_PORT = re.compile(r"[\w-]+:\d+")


def without_password(address: str) -> str:
    """Leave user and password out of an address, or of a message that has one.

    That is what stands between ``://`` and ``@`` (RFC 3986, section 3.2.1), also where a password
    has a raw ``/``, ``?`` or ``#``; the values of a query that are named as secrets; and the
    properties of a ``gst://`` pipeline that are there for it. In doubt more is left out.
    """
    head = _PIPELINE if address.startswith(_PIPELINE) else ""
    shown = address.removeprefix(head)
    spaced = None if head else _SPACED.fullmatch(shown)
    shown = _ADDRESS.sub(_without_user, shown) if spaced is None else _without_user(spaced)
    return head + (_SECRETS.sub("", shown) if _PIPELINE in address else shown)


def _without_user(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    if scheme.lower() in _WITHOUT_USER:
        return match[0]
    authority = _authority(rest)
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
        host = _authority(rest)
        known = bool(_HOST.fullmatch(host) or _PORT.fullmatch(host))
    else:
        # Without a colon there is no password, and the @ is one of a path or query.
        known = ":" not in rest.rpartition("@")[0] or bool(_HOST.fullmatch(authority))
    if not known:
        rest = rest.rpartition("@")[2]
    return f"{scheme}://" + _QUERY.sub(r"\1...", rest)


def _authority(rest: str) -> str:
    return re.split(r"[/?#]", rest, maxsplit=1)[0]

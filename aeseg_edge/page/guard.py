"""Who may ask the live page what.

On loopback everybody on this machine may look and edit; requests must name the machine as
loopback, so that no web page can reach it through a name of its own (DNS rebinding). Beyond
loopback, or where a token is given, all but the page's own files and ``/healthz`` needs
the token: as ``Authorization: Bearer``, or as the cookie that ``/api/login`` sets. Requests that
change something must also come from the page itself.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from aeseg_edge.errors import UsageError

SCRIPTS = (
    *("api", "classes", "counters", "header", "main", "picture"),
    *("pointing", "sources", "state", "stream", "timing"),
)
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
}
"""The page's own files by path: their names in static/ and media types."""

OPEN = frozenset({*FILES, "/healthz", "/api/login"})
"""Paths that need no token: they show nothing of the camera."""

MIN_TOKEN = 12
MAX_BODY = 16 << 10
"""Bytes of a request's body; an edit has about a hundred."""

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: HTTP status, and a problem for people."""

    status: int
    problem: str


def is_loopback(host: str) -> bool:
    """Say whether an address or name is this machine only: 127.0.0.0/8, ::1, localhost."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """Make a token: 128 random bits, safe in an address."""
    return secrets.token_urlsafe(16)


class Guard:
    """Decides on one request at a time; holds no state of any session.

    The token is what the page asks for, None on loopback; UsageError if it is shorter than 12
    characters or not printable ASCII. The port names the cookie: cookies of one host are shared
    between its ports.
    """

    def __init__(self, token: str | None, *, port: int) -> None:
        if token is not None and (len(token) < MIN_TOKEN or not _plain(token)):
            raise UsageError(
                f"the token has fewer than {MIN_TOKEN} characters, or some that are not printable "
                "ASCII",
                fix="Leave --token out, and a good one is made.",
            )
        self._token = token
        self._cookie = f"aeseg_{port}"

    @property
    def demands_token(self) -> bool:
        """True where requests need the token."""
        return self._token is not None

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> Refusal | None:
        """Decide on a request before anything of it is used; None where it may go on.

        The path is without its query, headers have names in lower case.
        """
        if self._token is None and not is_loopback(_host_name(headers.get("host", ""))):
            return Refusal(421, "this page answers to localhost only")
        bearer = self._has_bearer(headers)
        if (
            self._token is not None
            and path not in OPEN
            and not (bearer or self._has_cookie(headers))
        ):
            return Refusal(401, "a token is needed")
        if method not in ("GET", "HEAD", "POST"):
            return Refusal(405, "only GET, HEAD and POST are known")
        if method == "POST":
            # A program that has the token sends no Origin; a browser always does.
            if not bearer and not self._is_same_origin(headers):
                return Refusal(403, "the request does not come from this page")
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return Refusal(415, "the body must be application/json")
        return None

    def login(self, token: object) -> str | None:
        """Give the ``Set-Cookie`` header that a right token earns; None for a wrong one."""
        if self._token is None or not isinstance(token, str):
            return None
        if not _equal(token, self._token):
            return None
        return f"{self._cookie}={self._session()}; Path=/; HttpOnly; SameSite=Strict"

    def _session(self) -> str:
        """What the cookie holds: follows from the token, and does not tell it."""
        assert self._token is not None
        return hmac.new(self._token.encode(), b"aeseg live page", hashlib.sha256).hexdigest()

    def _has_bearer(self, headers: Mapping[str, str]) -> bool:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if self._token is None or scheme.lower() != "bearer":
            return False
        return _equal(value.strip(), self._token)

    def _has_cookie(self, headers: Mapping[str, str]) -> bool:
        # Not http.cookies: it stops at the first cookie it does not like, and those of other
        # services on this host come along, whatever their port.
        pairs = (each.partition("=") for each in headers.get("cookie", "").split(";"))
        values = (value.strip() for name, _, value in pairs if name.strip() == self._cookie)
        return any(_equal(value, self._session()) for value in values)

    @staticmethod
    def _is_same_origin(headers: Mapping[str, str]) -> bool:
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        host = headers.get("host", "").lower()
        try:
            # Scheme apart: a proxy that speaks TLS passes the Host on.
            origin = urlsplit(headers.get("origin", "")).netloc.lower()
        except ValueError:
            return False
        return bool(host) and origin == host


def _host_name(host: str) -> str:
    """The Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _equal(one: str, other: str) -> bool:
    """Compare in constant time; bytes, because compare_digest refuses other letters in str."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())

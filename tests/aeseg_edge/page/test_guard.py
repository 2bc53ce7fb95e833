"""Who gets in: nobody without the token beyond loopback, no other site ever, no other Host."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

import pytest

from aeseg_edge.errors import UsageError
from aeseg_edge.page.guard import OPEN, SCRIPTS, SECURITY_HEADERS, Guard, is_loopback, new_token

TOKEN = "a-long-enough-token"
HERE = {"host": "127.0.0.1:8080"}
JSON = {"content-type": "application/json"}
OWN = {**HERE, **JSON, "origin": "http://127.0.0.1:8080"}
CLOSED = ("/api/state", "/api/frame", "/api/at", "/snapshot.jpg", "/labels.png", "/stream.mjpg")
CLOSED = (*CLOSED, "/metrics", "/nothing", "//", "/main.js/../api/state")


def status(guard: Guard, method: str, path: str, headers: dict[str, str]) -> int | None:
    refusal = guard.check(method, path, headers)
    return None if refusal is None else refusal.status


def cookie(guard: Guard) -> str:
    made = guard.login(TOKEN)
    assert made is not None
    return made.partition(";")[0]


# --- the guard alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"]
)
def test_loopback_is_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "10.0.0.7", "camera", "localhost.evil.example", "127.0.0.1.example", ""],
)
def test_everything_else_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("path", CLOSED)
def test_without_the_token_nothing_of_the_camera_is_seen(path: str) -> None:
    guard = Guard(TOKEN, port=8080)
    assert status(guard, "GET", path, HERE) == 401
    assert status(guard, "GET", path, {**HERE, "authorization": "Bearer wrong-token-xx"}) == 401
    assert status(guard, "GET", path, {**HERE, "authorization": f"Basic {TOKEN}"}) == 401
    assert status(guard, "GET", path, {**HERE, "cookie": f"aeseg_8080={TOKEN}"}) == 401
    assert status(guard, "GET", path, {**HERE, "cookie": "a=b; ;;=; \x00"}) == 401


@pytest.mark.parametrize("path", CLOSED)
def test_the_token_or_its_cookie_opens(path: str) -> None:
    guard = Guard(TOKEN, port=8080)
    assert status(guard, "GET", path, {**HERE, "authorization": f"Bearer {TOKEN}"}) is None
    assert status(guard, "GET", path, {**HERE, "cookie": f"x=y; {cookie(guard)}"}) is None


@pytest.mark.parametrize(
    "sent",
    [
        'prefs={{"a": 1}}; {0}',
        "n=Jos\xe9; {0}",
        "{0}; a b=c; ===; flag",
        ";;{0};",
        "aeseg_8080=of-an-old-run; {0}",
        "  {0}  ",
    ],
)
def test_cookies_of_other_services_on_the_host_do_no_harm(sent: str) -> None:
    guard = Guard(TOKEN, port=8080)
    assert status(guard, "GET", "/metrics", {**HERE, "cookie": sent.format(cookie(guard))}) is None
    wrong = sent.format("aeseg_8080=of-somebody-else")
    assert status(guard, "GET", "/metrics", {**HERE, "cookie": wrong}) == 401


def test_what_is_open_shows_nothing_of_the_camera() -> None:
    scripts = {f"/{name}.js" for name in SCRIPTS}
    assert {"/", "/page.css", *scripts, "/healthz", "/api/login"} == OPEN
    assert status(Guard(TOKEN, port=1), "GET", "/", HERE) is None


def test_the_cookie_is_not_the_token_and_scripts_cannot_read_it() -> None:
    made = Guard(TOKEN, port=8080).login(TOKEN)
    assert made is not None
    assert TOKEN not in made
    assert "HttpOnly" in made
    assert "SameSite=Strict" in made


@pytest.mark.parametrize("wrong", ["", "a-long-enough-tokeN", "ü" * 19, "\ud800", None, 5, [TOKEN]])
def test_a_wrong_token_earns_no_cookie(wrong: object) -> None:
    assert Guard(TOKEN, port=8080).login(wrong) is None


def test_the_cookie_of_another_token_is_no_good() -> None:
    other = Guard("another-good-token", port=8080)
    assert (
        status(other, "GET", "/metrics", {**HERE, "cookie": cookie(Guard(TOKEN, port=8080))}) == 401
    )


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def watch(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    guard = Guard(TOKEN, port=8080)
    sent = cookie(guard)
    monkeypatch.setattr(hmac, "compare_digest", watch)
    guard.login("x")
    guard.check("GET", "/metrics", {**HERE, "authorization": "Bearer y"})
    guard.check("GET", "/metrics", {**HERE, "cookie": sent})
    assert [one for one, _ in compared[:2]] == [b"x", b"y"]
    assert compared[2][0].decode() == sent.partition("=")[2]


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://127.0.0.1:8080.evil.example"}, 403),
        ({"origin": "http://[bad"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, None),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, None),
    ],
)
def test_changes_come_from_the_page_itself(
    token: str | None, headers: dict[str, str], expected: int | None
) -> None:
    guard = Guard(token, port=8080)
    known = {"cookie": cookie(guard)} if token else {}
    assert status(guard, "POST", "/api/edit", {**OWN, **known, **headers}) == expected


def test_a_change_without_origin_or_token_is_refused() -> None:
    assert status(Guard(None, port=8080), "POST", "/api/edit", {**HERE, **JSON}) == 403


def test_a_program_with_the_token_needs_no_origin() -> None:
    headers = {**HERE, **JSON, "authorization": f"bearer {TOKEN}"}
    assert status(Guard(TOKEN, port=8080), "POST", "/api/edit", headers) is None


def test_a_change_beyond_loopback_needs_the_token_however_it_comes() -> None:
    assert status(Guard(TOKEN, port=8080), "POST", "/api/edit", OWN) == 401
    assert status(Guard(TOKEN, port=8080), "POST", "/api/save", OWN) == 401


def test_a_page_behind_a_proxy_that_speaks_tls_is_its_own_origin() -> None:
    guard = Guard(TOKEN, port=8080)
    headers = {**JSON, "host": "cam.example", "origin": "https://cam.example"}
    assert status(guard, "POST", "/api/edit", {**headers, "cookie": cookie(guard)}) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "10.0.0.7:8080", "", "[::2]:1"]
)
def test_on_loopback_no_other_name_is_answered(host: str) -> None:
    assert status(Guard(None, port=8080), "GET", "/", {"host": host}) == 421


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "[::1]:8080"])
def test_on_loopback_all_its_names_are_answered(host: str) -> None:
    assert status(Guard(None, port=8080), "GET", "/api/state", {"host": host}) is None


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(method: str) -> None:
    assert status(Guard(None, port=8080), method, "/", OWN) == 405


@pytest.mark.parametrize("token", ["short", "with a space in it", "ümlaut-in-the-token", "a" * 11])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(UsageError, match="token has"):
        Guard(token, port=8080)


def test_a_new_token_is_long_and_never_the_same() -> None:
    assert len({new_token() for _ in range(20)}) == 20
    assert all(len(new_token()) >= 22 for _ in range(5))
    assert Guard(new_token(), port=1).demands_token


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture
def sink() -> Iterator[object]:
    """A sink that answers every machine, so it made itself a token."""
    pytest.importorskip("cv2")
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from aeseg_edge.page.sink import Live, WebSink
    from tests.doubles.web import Editor, put

    with WebSink("http://0.0.0.0:0", Live(editor=Editor())) as opened:
        put(opened)
        yield opened


def test_beyond_loopback_a_token_is_made_told_and_demanded(sink: object) -> None:
    from tests.doubles.web import ask, send

    token = sink.address.partition("#token=")[2]  # type: ignore[attr-defined]
    assert len(token) >= 22
    for path in ("/api/state", "/api/frame", "/snapshot.jpg", "/stream.mjpg", "/metrics"):
        reply = ask(sink, path)  # type: ignore[arg-type]
        assert reply.status == 401
        assert b"street" not in reply.body
    assert ask(sink, "/api/state", Authorization=f"Bearer {token}").status == 200  # type: ignore[arg-type]
    assert send(sink, "/api/login", {"token": "wrong-token-wrong"}).status == 401  # type: ignore[arg-type]
    made = send(sink, "/api/login", {"token": token})  # type: ignore[arg-type]
    session = made.headers["set-cookie"].partition(";")[0]
    assert ask(sink, "/api/state", Cookie=session).status == 200  # type: ignore[arg-type]
    edit = {"action": "rename", "id": 1, "name": "road"}
    assert send(sink, "/api/edit", edit).status == 401  # type: ignore[arg-type]
    assert send(sink, "/api/edit", edit, Cookie=session, Origin="http://evil.example").status == 403  # type: ignore[arg-type]
    assert send(sink, "/api/edit", edit, Cookie=session).status == 200  # type: ignore[arg-type]


def test_every_answer_carries_the_security_headers(sink: object) -> None:
    from tests.doubles.web import ask

    for path in ("/", "/api/state", "/nothing", "/healthz"):
        headers = ask(sink, path).headers  # type: ignore[arg-type]
        assert SECURITY_HEADERS.items() <= headers.items()
        assert "server" not in headers
    policy = SECURITY_HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("length", ["stated", "chunked"])
def test_a_huge_body_is_not_read(sink: object, length: str) -> None:
    from tests.doubles.web import ask, send

    token = sink.address.partition("#token=")[2]  # type: ignore[attr-defined]
    if length == "stated":
        reply = send(sink, "/api/login", b'"' + b"x" * 20_000 + b'"')  # type: ignore[arg-type]
    else:
        piece = b"4e20\r\n" + b"x" * 20_000 + b"\r\n"
        reply = ask(
            sink,  # type: ignore[arg-type]
            "/api/login",
            method="POST",
            body=piece + b"0\r\n\r\n",
            Content_Type="application/json",
            Content_Length="",
            Transfer_Encoding="chunked",
            Authorization=f"Bearer {token}",
        )
    assert reply.status == 400
    assert "more than 16384 bytes" in reply.data["problem"]


@pytest.mark.parametrize("host", ["[", "a:b:c", "[::1", "//", "x:99999999"])
def test_the_pages_own_files_do_not_care_for_odd_hosts(sink: object, host: str) -> None:
    from tests.doubles.web import ask

    for path in ("/", "/main.js"):
        assert ask(sink, path, Host=host).status == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/main.js/../../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.css%00.html",
        "/..%5c..%5cwindows",
        "/page.html",
        "/sink.py",
        "/api",
    ],
)
def test_no_path_leads_to_a_file(sink: object, path: str) -> None:
    from tests.doubles.web import ask

    token = sink.address.partition("#token=")[2]  # type: ignore[attr-defined]
    reply = ask(sink, path, Authorization=f"Bearer {token}")  # type: ignore[arg-type]
    assert reply.status == 404
    assert b"root:" not in reply.body

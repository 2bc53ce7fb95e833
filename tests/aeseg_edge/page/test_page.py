"""The live page in Chromium: it loads, moves, and a rename reaches the bundle's file."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from aeseg_edge.bundle.archive import Bundle  # noqa: E402
from aeseg_edge.bundle.codebook import VOID  # noqa: E402
from aeseg_edge.page.classes import LiveClasses  # noqa: E402
from aeseg_edge.page.sink import Live, WebSink  # noqa: E402
from aeseg_edge.segment.segmenter import Segmenter  # noqa: E402
from aeseg_edge.sources.base import Frame  # noqa: E402
from aeseg_edge.sources.scene import draw_scene  # noqa: E402
from tests.doubles.chromium import Browser  # noqa: E402

ENTER, ESCAPE, TAB, CONTROL, RIGHT = "\ue007", "\ue00c", "\ue004", "\ue009", "\ue014"
# What the page's scripts give one another, for the tests' own scripts.
EXPOSE = (
    "return Promise.all(['api', 'state', 'picture', 'classes']"
    ".map((name) => import(`/${name}.js`)))"
    ".then((all) => { Object.assign(window, ...all); return true; })"
)
MOVING = "return Number(document.getElementById('picture').dataset.frame) > arguments[0]"


class Run:
    """A segmenter and a page, fed with a drawn scene at 20 frames a second."""

    def __init__(self, bundle: Path, host: str = "127.0.0.1") -> None:
        self.bundle = bundle
        self.segmenter = Segmenter.load(bundle, backend="onnxruntime", threads=1)

        class Told(WebSink):
            def figures(self) -> dict[str, object]:
                return {"reconnects_total": 7}

        self.sink = Told(f"http://{host}:0", Live(editor=LiveClasses(self.segmenter)))
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.feed)
        self.thread.start()

    def feed(self) -> None:
        index = 0
        while not self.stopping.wait(0.05):
            captured = time.monotonic()
            image = draw_scene(index, 192, 128)
            frame = Frame(image, index, captured, "test")
            result = self.segmenter(image, captured=captured, want=self.sink.wants)
            self.sink.write(frame, replace(result, frame=frame))
            index += 1

    def close(self) -> None:
        self.stopping.set()
        self.thread.join()
        self.sink.close()
        self.segmenter.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def run(v1_bundle: Path, tmp_path: Path) -> Iterator[Run]:
    path = tmp_path / "street.aeseg"
    shutil.copy(v1_bundle, path)
    opened = Run(path)
    yield opened
    opened.close()


@pytest.fixture
def page(browser: Browser, run: Run) -> Browser:
    """The page, open at desktop size, with pictures."""
    browser.resize(1280, 900)
    browser.prefer("light")
    browser.open(run.sink.address)
    browser.run(EXPOSE)
    browser.until(MOVING, 0)
    browser.until("return document.querySelectorAll('#classes li').length === 5")
    browser.errors()
    return browser


def names(page: Browser) -> list[str]:
    found: list[str] = page.run(
        "return [...document.querySelectorAll('#classes .name')].map((e) => e.textContent)"
    )
    return found


def pixels(page: Browser) -> list[int]:
    """Sums of red, green and blue of what the canvas shows."""
    found: list[int] = page.run(
        "const c = document.getElementById('picture');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const s = [0, 0, 0]; d.forEach((v, i) => { if (i % 4 < 3) s[i % 4] += v; }); return s;"
    )
    return found


def test_the_picture_moves_and_nothing_is_complained_about(page: Browser) -> None:
    first = page.run("return Number(document.getElementById('picture').dataset.frame)")
    page.until(MOVING, first + 5)
    assert page.run("return document.getElementById('veil').hidden")
    page.until("return document.getElementById('state').dataset.state === 'live'")
    assert sum(pixels(page)) > 0
    assert page.errors() == []


def test_a_rename_survives_a_reload_and_is_in_the_bundle(page: Browser, run: Run) -> None:
    page.click('#classes li[data-id="1"] .class')
    page.type('#classes li[data-id="1"] .edit-name', "kerb & <b>stone</b>")
    page.press(ENTER)
    page.until("return !document.getElementById('save').disabled")
    assert names(page)[1] == "kerb & <b>stone</b>"
    assert Bundle.open(run.bundle).codebook.classes[1].name == "class 1"
    page.click("#save")
    page.until("return document.getElementById('save').disabled")
    assert Bundle.open(run.bundle).codebook.classes[1].name == "kerb & <b>stone</b>"
    page.open(run.sink.address)
    page.until("return document.querySelectorAll('#classes li').length === 5")
    assert names(page)[1] == "kerb & <b>stone</b>"
    number = page.run("return Number(document.getElementById('picture').dataset.frame || 0)")
    page.until(MOVING, number)
    assert page.errors() == []


def test_a_name_that_was_not_saved_is_in_a_draft_when_the_run_has_ended(
    page: Browser, run: Run
) -> None:
    page.run("return edit({ action: 'rename', id: 1, name: 'kerb' })")
    run.close()
    draft = Bundle.open(run.bundle.with_name("street.draft.aeseg"))
    assert draft.codebook.classes[1].name == "kerb"
    assert Bundle.open(run.bundle).codebook.classes[1].name == "class 1"


def test_a_class_is_merged_recoloured_made_void_and_taken_back(page: Browser, run: Run) -> None:
    page.run(
        "const e = document.querySelector('#classes li[data-id=\"0\"] .edit-color');"
        "e.value = '#0a0b0c'; e.dispatchEvent(new Event('change', { bubbles: true }));"
    )
    page.until("return page.state.classes[0].color === '#0a0b0c'")
    page.run("document.querySelector('#classes li[data-id=\"3\"] .class').click()")
    page.run(
        "const e = document.querySelector('#classes li[data-id=\"3\"] .edit-merge');"
        "e.value = '2'; e.dispatchEvent(new Event('change', { bubbles: true }));"
    )
    apply = '#classes li[data-id="3"] .edit-apply'
    assert page.run(f"return document.querySelector('{apply}').textContent") == "Merge into class 2"
    page.click(apply)
    page.until("return document.querySelectorAll('#classes li').length === 4")
    page.run("document.querySelector('#classes li[data-id=\"4\"] .class').click()")
    page.click('#classes li[data-id="4"] .edit-void')
    page.until("return document.querySelectorAll('#classes li').length === 3")
    assert run.segmenter.codebook.remap.tolist() == [0, 1, 2, 2, VOID]
    assert run.segmenter.codebook.classes[0].color == (10, 11, 12)
    page.run("document.activeElement.blur()")
    page.press(CONTROL, "z")
    page.until("return document.querySelectorAll('#classes li').length === 4")
    page.press(CONTROL, "s")
    page.until("return document.getElementById('save').disabled")
    assert Bundle.open(run.bundle).codebook.remap.tolist() == [0, 1, 2, 2, 4]
    assert page.errors() == []


def test_a_refused_edit_is_told_and_changes_nothing(page: Browser, run: Run) -> None:
    run.segmenter.set_codebook(run.segmenter.codebook)
    page.run("return edit({ action: 'rename', id: 77, name: 'x' })")
    page.until("return document.querySelector('.toast.wrong')?.textContent.includes('no class 77')")
    assert names(page)[0] == "class 0"


def test_a_click_tells_the_class_and_the_cluster_under_it(page: Browser, run: Run) -> None:
    page.until("return page.packet.uncertainty !== null")
    page.click("#picture")
    page.until("return document.getElementById('found-more').textContent.startsWith('cluster ')")
    told = page.run("return document.getElementById('found-name').textContent")
    cluster = page.run("return page.clusterChosen")
    assert told == f"class {cluster}"
    page.press(ESCAPE)
    page.until("return document.getElementById('found').hidden")


def test_every_view_draws_something_else(page: Browser) -> None:
    page.until("return page.packet.uncertainty !== null")
    page.press(" ")
    page.until("return page.held")
    page.run("document.activeElement.blur()")
    seen = {}
    for key, view in (("1", "overlay"), ("2", "mask"), ("3", "both"), ("4", "uncertainty")):
        page.press(key)
        page.until(f"return page.view === '{view}'")
        page.run("draw()")
        seen[view] = pixels(page)
    assert len({tuple(sums) for sums in seen.values()}) == 4
    page.press("1")
    page.run("setAlpha(0); draw()")
    plain = pixels(page)
    page.run("setAlpha(1); draw()")
    assert pixels(page) != plain
    assert seen["overlay"] not in (plain, pixels(page))


def test_the_mask_has_the_colours_of_the_bundle(page: Browser, run: Run) -> None:
    page.press(" ")
    page.run("setView('mask'); draw()")
    found = page.run(
        "const { width: w, height: h, labels } = page.packet;"
        "const pen = document.getElementById('picture').getContext('2d');"
        "const d = pen.getImageData(0, 0, w, h).data;"
        "const i = labels.findIndex((v, k) => k > w && k % w > 0 && labels[k - 1] === v &&"
        " labels[k - w] === v); return [labels[i], d[4 * i], d[4 * i + 1], d[4 * i + 2]];"
    )
    item = run.segmenter.codebook.class_of(found[0])
    assert item is not None
    assert tuple(found[1:]) == item.color


def test_the_page_is_used_with_the_keyboard_alone(page: Browser, run: Run) -> None:
    page.run("document.getElementById('picture').focus()")
    page.press(RIGHT)
    page.press(ENTER)
    page.until("return !document.getElementById('found').hidden")
    page.run("document.getElementById('found-edit').focus()")
    page.press(ENTER)
    page.until("return document.activeElement.classList.contains('edit-name')")
    chosen = page.run("return page.open")
    page.type(":focus", "by hand")
    page.press(ENTER)
    page.until("return !document.getElementById('save').disabled")
    item = run.segmenter.codebook.class_of(chosen)
    assert item is not None
    assert item.name == "by hand"
    where = "return document.activeElement.closest('li')?.dataset.id"
    page.until(f"{where} === '{chosen}'")
    page.run("document.getElementById('undo').focus()")
    seen = []
    for _ in range(10):
        page.press(TAB)
        seen.append(page.run("return document.activeElement.id || document.activeElement.name"))
    order = ["save", "picture", "found-edit", "found-close", "view", "alpha", "pause", "snapshot"]
    assert seen[:8] == order


def test_a_bar_is_as_long_as_the_share_beside_it(page: Browser) -> None:
    page.until("return document.querySelector('#classes li .share').textContent !== '\u2013'")
    page.press(" ")
    page.until("return page.held")
    measure = (
        "return [...document.querySelectorAll('#classes li')].map((row) => {"
        "const [bar, meter] = ['.meter i', '.meter'].map((name) => row.querySelector(name)"
        ".getBoundingClientRect().width); return [bar / meter,"
        "(parseFloat(row.querySelector('.share').textContent) || 0) / 100]; })"
    )
    # The bars glide to their new lengths.
    page.until("return document.getAnimations().length === 0")
    bars = page.run(measure)
    assert sum(share for _, share in bars) == pytest.approx(1, abs=0.01)
    for drawn, share in bars:
        assert drawn == pytest.approx(share, abs=0.005)


def test_counters_and_times_are_shown(page: Browser) -> None:
    page.until("return document.getElementById('counters').textContent.includes('reconnects')")
    page.until("return document.getElementById('latency').textContent.endsWith('ms')")
    page.until("return Number(document.getElementById('fps').textContent) > 5")
    drawn = (
        "const c = document.getElementById('chart');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0)"
    )
    page.until(drawn)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_systems_theme(page: Browser, scheme: str) -> None:
    page.prefer(scheme)
    bright = page.run(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (sum(bright) > 600) if scheme == "light" else (sum(bright) < 90)


def test_a_phone_shows_all_without_scrolling_sideways(page: Browser) -> None:
    page.resize(390, 844, phone=True)
    page.until("return innerWidth === 390")
    for view in ("overlay", "mask", "both", "uncertainty"):
        page.run(f"setView('{view}'); draw(); openEditor(0)")
        assert page.run("return document.documentElement.scrollWidth") <= 390
    small = page.run(
        "return [...document.querySelectorAll('button, input, select, a.icon')]"
        ".filter((e) => e.offsetParent && e.type !== 'radio' && e.type !== 'range')"
        ".filter((e) => e.getBoundingClientRect().height < 26).map((e) => e.className || e.id)"
    )
    assert small == []


def test_a_run_that_ends_is_said(page: Browser, run: Run) -> None:
    run.close()
    page.until("return document.getElementById('state').dataset.state === 'offline'")
    assert not page.run("return document.getElementById('veil').hidden")


def test_beyond_loopback_the_page_asks_for_its_token(
    browser: Browser, v1_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "street.aeseg"
    shutil.copy(v1_bundle, path)
    run = Run(path, host="0.0.0.0")
    try:
        browser.resize(1280, 900)
        bare, _, token = run.sink.address.partition("#token=")
        bare = bare.replace("0.0.0.0", "127.0.0.1")
        browser.open(bare)
        browser.run(EXPOSE)
        browser.until("return document.getElementById('login').open")
        assert browser.run("return page.packet") is None
        browser.type("#token", "not-the-token-at-all")
        browser.press(ENTER)
        browser.until("return !document.getElementById('login-bad').hidden")
        browser.type("#token", token)
        browser.press(ENTER)
        browser.until(MOVING, 0)
        browser.command("Network.clearBrowserCookies")
        browser.open("about:blank")
        browser.open(f"{bare}#token={token}")
        browser.until(MOVING, 0)
        assert browser.address == bare
        assert token not in browser.run("return document.cookie")
    finally:
        run.close()


def test_several_sources_are_chosen_between_and_each_shows_its_own(
    browser: Browser, v1_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "street.aeseg"
    shutil.copy(v1_bundle, path)
    with Segmenter.load(path, backend="onnxruntime", threads=1) as segmenter:
        sink = WebSink("http://127.0.0.1:0", Live(editor=LiveClasses(segmenter)))
        stopping = threading.Event()

        def feed() -> None:
            index = 0
            while not stopping.wait(0.05):
                for stream, (name, size) in enumerate((("front", (192, 128)), ("rear", (96, 96)))):
                    # The rear camera begins later.
                    if stream and index < 20:
                        continue
                    image = draw_scene(index, *size)
                    frame = Frame(image, index + 1000 * stream, time.monotonic(), name)
                    sink.write(frame, replace(segmenter(image, stream=stream), frame=frame))
                index += 1

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            browser.resize(1280, 900)
            browser.open(sink.address)
            # What the page before complained about, when its run ended, is not this page's.
            browser.errors()
            browser.until(MOVING, 0)
            browser.until("return document.querySelectorAll('#sources input').length === 2")
            shown = "const c = document.getElementById('picture'); return c.dataset.source"
            frame = "Number(c.dataset.frame)"
            assert browser.run(shown) == "front"
            browser.run("document.querySelectorAll('#sources input')[1].click()")
            browser.until(f"{shown} === 'rear' && {frame} > 1000 && c.width === 96")
            size = "return document.getElementById('counters').innerText.includes(arguments[0])"
            browser.until(size, "96 \u00d7 96")
            # What comes back of a change is of the source that is looked at, too.
            browser.run(EXPOSE)
            browser.run("return edit({ action: 'rename', id: 1, name: 'kerb' })")
            assert browser.run("return page.state.source.name") == "rear"
            browser.run("return act('/api/undo')")
            assert browser.run("return page.state.source.name") == "rear"
            assert "source=rear" in browser.run("return document.getElementById('snapshot').href")
            browser.press("n")
            browser.until(f"{shown} === 'front' && {frame} < 1000 && c.width === 192")
            browser.resize(390, 844)
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
            assert browser.errors() == []
        finally:
            stopping.set()
            thread.join()
            sink.close()

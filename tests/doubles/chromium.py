"""Chromium through its own driver: as much of W3C WebDriver as the tests need, over plain HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key that WebDriver gives elements by (W3C WebDriver, section 12)."""

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)


def find_browser() -> tuple[str, str] | None:
    """Give the paths of Chromium and of its driver, None where one is missing."""
    browsers = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    browser, driver = next(filter(None, browsers), None), shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window. A context manager."""

    def __init__(self, folder: Path) -> None:
        found = find_browser()
        assert found is not None
        self._driver = subprocess.Popen(
            [found[1], "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        port = next(
            line.rsplit(" ", 1)[1].strip(" .\n")
            for line in self._driver.stdout
            if "started successfully on port" in line
        )
        self._base = f"http://127.0.0.1:{port}"
        options = {
            "binary": found[0],
            "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"],
        }
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": always}})
        except BaseException:
            self._driver.kill()
            self._driver.wait()
            raise
        self._base += f"/session/{made['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait()

    def open(self, address: str) -> None:
        self._call("POST", "/url", {"url": address})

    @property
    def address(self) -> str:
        return str(self._call("GET", "/url"))

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script's text in the page and give what it returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": arguments})

    def until(self, script: str, *arguments: object, seconds: float = 15.0) -> Any:
        """Run a script until what it returns is true."""
        end = time.monotonic() + seconds
        while True:
            found = self.run(script, *arguments)
            if found:
                return found
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type over what a field holds."""
        element = self._find(selector)
        self._call("POST", f"/element/{element}/clear", {})
        self._call("POST", f"/element/{element}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys together in the focused element."""
        down = [{"type": "keyDown", "value": key} for key in keys]
        up = [{"type": "keyUp", "value": key} for key in reversed(keys)]
        actions = [{"type": "key", "id": "keys", "actions": [*down, *up]}]
        self._call("POST", "/actions", {"actions": actions})

    def command(self, name: str, **parameters: object) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def prefer(self, scheme: str) -> None:
        """Set the system's theme: light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def errors(self) -> list[str]:
        """What the page complained about since the last call."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def _find(self, selector: str) -> str:
        using = {"using": "css selector", "value": selector}
        return str(self._call("POST", "/element", using)[ELEMENT])

    def _call(self, method: str, path: str, data: object | None = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self._base + path, body, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            told = json.load(error)["value"]
            raise AssertionError(f"{told['error']}: {told['message'].splitlines()[0]}") from None

"""A real Chromium, driven over its DevTools protocol through a pipe: no driver and no library is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page in a headless Chromium.

    Attributes:
        complaints: Errors and warnings of the console, exceptions, and requests to anywhere but files and data.
    """

    def __init__(self, folder, width=1280, height=900):
        to_read, self.sink = os.pipe()
        self.source, to_write = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        ]
        # The protocol lives on file descriptors 3 and 4.
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}', PROGRAM, *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.number, self.buffer, self.session = 0, b"", None
        self.complaints, self.events = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.session = None
            self.call("Browser.close")
        finally:
            os.close(self.sink)
            self.process.wait(timeout=10)
            os.close(self.source)

    def resize(self, width, height=900):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, path):
        """Open a file, and give the seconds until it is loaded."""
        self.events.clear()
        started = time.perf_counter()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self._until(lambda: "Page.loadEventFired" in self.events)
        return time.perf_counter() - started

    def run(self, script):
        """The value of an expression, or of the promise that it is."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, path, whole=False):
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.sink, json.dumps(message).encode() + b"\0")
        answers = []
        self._until(lambda: bool(answers), lambda m: answers.append(m) if m.get("id") == self.number else None)
        assert "error" not in answers[0], answers[0]
        return answers[0]["result"]

    def _until(self, done, heard=lambda message: None, seconds=30):
        deadline = time.monotonic() + seconds
        while not done():
            assert select.select([self.source], [], [], max(0, deadline - time.monotonic()))[0], "Chromium is silent"
            self.buffer += os.read(self.source, 1 << 20)
            *messages, self.buffer = self.buffer.split(b"\0")
            for message in map(json.loads, messages):
                heard(message)
                self._note(message)

    def _note(self, message):
        method, params = message.get("method", ""), message.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.complaints.append(params["args"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.complaints.append(params["entry"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.complaints.append(url)

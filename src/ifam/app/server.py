"""The server of the app: where it listens, what it takes, and that nothing leaves the machine."""

import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ifam.app.page import build
from ifam.app.panel import resource
from ifam.app.session import MOST_VISITORS, Session, Sessions, Studio
from ifam.errors import IfamError
from ifam.importing import import_extra
from ifam.report.overlays import part_colors

# Seconds for which an upload stays: visitors who open the same image share its file, and may have to wait.
UPLOAD_SECONDS = 300.0
# Seconds between two looks at the uploads.
LOOK_SECONDS = 30.0
_SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
# What the page may load: nothing from elsewhere. Gradio's own scripts need the rest.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)


def check_installed() -> None:
    """Refuse to go on without Gradio, before a model is loaded.

    Raises:
        IfamError: It is not installed.
    """
    # Gradio and the hub read them when they are imported: nothing is counted or remembered, and no version looked up.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    import_extra("gradio", "app", "The app needs")


@contextmanager
def serving(
    studio: Studio,
    examples: Sequence[tuple[Image.Image, str]] = (),
    *,
    threshold: float = 0.7,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    max_megabytes: float = 20.0,
    sessions: Sessions | None = None,
) -> Iterator[str]:
    """Serve the app within the block.

    Args:
        studio: The model, and what goes with it.
        examples: Images to begin with, and their names.
        threshold: Confidence below which an answer is called unsure, at first.
        host: Address to listen at; a loopback address serves this machine alone.
        port: Port to listen at; None for any that is free.
        max_megabytes: Largest file that is taken.
        sessions: Those of the visitors, to know about them outside.

    Yields:
        The address of the page.

    Raises:
        IfamError: Gradio is not installed, the port is taken, or the host is not of this machine.
    """
    check_installed()
    import gradio as gr
    from starlette.middleware import Middleware

    _fetch_nothing()
    sessions = Sessions(lambda: Session(studio)) if sessions is None else sessions
    with _uploads() as folder:
        page = build(studio, sessions, examples, threshold)
        try:
            _, url, _ = page.queue(default_concurrency_limit=1).launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                inbrowser=False,
                prevent_thread_lock=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                footer_links=[],
                max_file_size=round(max_megabytes * 1e6),
                # Gradio keeps what it has shown to each of 10,000 visitors, which is some 0.7 MB.
                state_session_capacity=MOST_VISITORS,
                theme=gr.themes.Base(font=list(_SYSTEM_FONTS), font_mono=["monospace"]),
                css=resource("app.css") + _colors(studio.model.config.num_parts),
                app_kwargs={"middleware": [Middleware(_Confined)]},
            )
        except OSError as error:
            raise IfamError(
                f"The app cannot listen at {host}:{port}: the port is taken, or the address is not of this machine; "
                f"give another --port or --host."
            ) from error
        try:
            with _removing_uploads(folder, page):
                yield str(url)
        finally:
            page.close(verbose=False)


@contextmanager
def _uploads() -> Iterator[Path]:
    """A folder for uploads that is removed at the end; Gradio reads its name here and there."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="ifam-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextmanager
def _removing_uploads(folder: Path, page: Any) -> Iterator[None]:
    """Remove old uploads within the block, beside it.

    Gradio's own `delete_cache` is not used: an upload at the wrong moment ends it, in silence.
    """
    # The pictures of the examples stay.
    kept, ended = set(folder.rglob("*")), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            _remove_old(folder, kept, time.time() - UPLOAD_SECONDS)
            # Gradio remembers the name of every file.
            for names in getattr(page, "temp_file_sets", ()):
                names.difference_update([name for name in tuple(names) if not os.path.exists(name)])

    looking = threading.Thread(target=look, name="uploads", daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()


def _remove_old(folder: Path, kept: Set[Path], before: float) -> None:
    """Remove files that were put into a folder before a time, but those to keep."""
    for path in folder.rglob("*"):
        # Another process may have removed it, or may be reading it (Windows): it waits for the next look.
        with suppress(OSError):
            if path not in kept and path.is_file() and path.stat().st_ctime < before:
                path.unlink()


class _Confined:
    """Middleware that forbids the page to ask any other server for anything."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def confined(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self._app(scope, receive, confined)


def _fetch_nothing() -> None:
    """Let Gradio refuse addresses in the place of files, which it would fetch for whoever asks."""
    from gradio import exceptions, processing_utils

    async def refuse(url: str, cache_dir: str) -> str:
        raise exceptions.Error("This app fetches nothing; upload the file itself.")

    processing_utils.async_ssrf_protected_download = refuse


def _colors(number: int) -> str:
    """The colors of the parts at their boxes."""
    colors = enumerate(part_colors(number), 1)
    return "".join(f"#parts label:nth-of-type({k}) {{ --part: rgb{color}; }}\n" for k, color in colors)

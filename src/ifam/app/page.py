"""The page of the app: a thin layer of Gradio over sessions."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import escape
from PIL import Image

from ifam.app.exploration import BRUSHES, Exploration
from ifam.app.panel import answer_html, bars_html, data_uri, pictures_html, resource
from ifam.app.session import Session, Sessions, Studio
from ifam.errors import IfamError
from ifam.io import printable
from ifam.report.overlays import enlarge

# Radius in cells of each size of the brush.
_SIZES = {"small": 0, "medium": 1, "large": 3}
# Updates by component.
_Updates = dict[Any, Any]


@dataclass(frozen=True)
class _Components:
    """What the page consists of; `gallery` is None where there are no examples."""

    notice: Any
    upload: Any
    gallery: Any
    painter: Any
    brush: Any
    size: Any
    answer: Any
    pictures: Any
    parts: Any
    bars: Any
    unsure: Any
    reset: Any
    learn: Any

    @property
    def shown(self) -> list[Any]:
        """What changes with the answer."""
        return [self.notice, self.painter, self.parts, self.answer, self.pictures]


def build(studio: Studio, sessions: Sessions, examples: Sequence[tuple[Image.Image, str]], threshold: float) -> Any:
    """The page, as `gradio.Blocks`.

    Args:
        studio: The model, and what goes with it.
        sessions: Those of all visitors.
        examples: Images to begin with, and their names.
        threshold: Confidence below which an answer is called unsure, at first.
    """
    import gradio as gr

    with gr.Blocks(title="ifam", analytics_enabled=False) as page:
        _connect(_layout(studio, examples, threshold), _part_names(studio), sessions, examples)

        def leave(request: gr.Request) -> None:
            sessions.close(str(request.session_hash))

        page.unload(leave)
    return page


def _layout(studio: Studio, examples: Sequence[tuple[Image.Image, str]], threshold: float) -> _Components:
    import gradio as gr

    names, gallery = _part_names(studio), None
    beside = ", beside that of a plain ViT" if studio.plain is not None else ""
    about = f"Hide parts and paint patches in or out: the answer follows{beside}. Images stay on this machine."
    gr.HTML(f'<div class="ifam-title"><h1>What does the answer rest on?</h1><p>{about}</p></div>')
    notice = gr.HTML(elem_classes="ifam-notice")
    with gr.Row(elem_id="board"):
        with gr.Column():
            upload: Any = gr.File(label="Drop an image here", height=140, elem_id="upload")
            # Gradio's own makes an empty file for each upload, and leaves it.
            upload.preprocess = lambda file: None if file is None else file.path
            if examples:
                look: dict[str, Any] = {"columns": 4, "height": 210 if len(examples) <= 4 else 260}
                look |= {"object_fit": "cover", "allow_preview": False, "interactive": False, "buttons": []}
                gallery = gr.Gallery(list(examples), label="Or try one of these", elem_id="examples", **look)
            nothing: dict[str, Any] = {"image": "", "paint": "", "rows": 1, "columns": 1, "number": 0}
            painter = gr.HTML(
                html_template='<canvas tabindex="0" role="application" aria-label="The image. Paint on it with the '
                'pointer, or with the arrow keys and the space bar."></canvas>',
                js_on_load=resource("painter.js"),
                elem_id="painter",
                **nothing,
            )
            asked = "Paint: what is the object?"
            brush = gr.Radio(list(BRUSHES), value="not this", label=asked, elem_id="brush")
            size = gr.Radio(list(_SIZES), value="small", label="Brush", elem_id="size")
        with gr.Column():
            answer, pictures = gr.HTML(elem_id="answer"), gr.HTML(elem_id="pictures")
            parts = gr.CheckboxGroup(names, value=names, label="Parts that the predictor may see", elem_id="parts")
            bars = gr.HTML(elem_id="bars")
            unsure: Any = gr.Slider(0, 100, 100 * threshold, step=1, label="Unsure below, in %", elem_id="unsure")
            # Gradio's own refuses what is out of range or empty with a bare "Error" over every panel.
            unsure.preprocess = partial(_percent, otherwise=100 * threshold)
            with gr.Row():
                reset = gr.Button("Undo edits", elem_id="reset")
                allowed = studio.corrected is not None
                learn = gr.Button("Learn from what I painted", variant="primary", visible=allowed, elem_id="learn")
    return _Components(
        notice, upload, gallery, painter, brush, size, answer, pictures, parts, bars, unsure, reset, learn
    )


def _percent(value: Any, otherwise: float) -> float:
    """The number from 0 to 100 that is closest to what was typed."""
    return min(100, max(0, value)) if isinstance(value, int | float) else otherwise


def _connect(
    on: _Components, names: Sequence[str], sessions: Sessions, examples: Sequence[tuple[Image.Image, str]]
) -> None:
    """What happens when a visitor does something; the names are those of the parts."""
    import gradio as gr

    def act(edit: Callable[[Session], str | None], threshold: int | float, request: Any) -> _Updates:
        """Do something with the session of a visitor, and show it; what is wrong is said in a sentence."""
        session = sessions.get(str(request.session_hash))
        try:
            session.notice = edit(session) or ""
            return {on.notice: session.notice, **_views(on, session, threshold)}
        except IfamError as error:
            return {on.notice: _note(str(error))}

    def change(
        edit: Callable[[Exploration, Sequence[tuple[int, int]]], None], seen: Any, threshold: int | float, request: Any
    ) -> _Updates:
        """Edit the image that a visitor sees, which another may have replaced meanwhile; `seen` is that of the painter.

        The boxes of the parts stay as they are: more clicks may be on their way.
        """

        def checked(session: Session) -> str:
            if session.exploration is None:
                raise IfamError("There is no image; drop one first.")
            image, cells = _stroke(seen)
            if image not in (None, session.number):
                raise IfamError("An edit of the image before came too late, and was left out.")
            edit(session.exploration, cells)
            return session.notice

        updates = act(checked, threshold, request)
        updates.pop(on.parts, None)
        return updates

    def open_file(file: str | None, threshold: int | float, request: gr.Request) -> _Updates:
        """The answer to an uploaded image."""

        def edit(session: Session) -> None:
            if file is None:
                raise IfamError("No file was given; drop an image.")
            session.open_file(file)

        return {**act(edit, threshold, request), on.upload: None}

    def open_example(threshold: int | float, request: gr.Request, event: gr.SelectData) -> _Updates:
        return act(lambda session: session.open_image(*examples[int(event.index)]), threshold, request)

    def paint(stroke: Any, brush: str, size: str, threshold: int | float, request: gr.Request) -> _Updates:
        """The answer after a stroke: rows and columns of the cells that it has touched, as JSON."""
        radius = _SIZES.get(size, 0)
        return change(lambda image, cells: image.paint(cells, brush, radius), stroke, threshold, request)

    def choose(kept: list[str], threshold: int | float, seen: Any, request: gr.Request) -> _Updates:
        """The answer without the parts that are not ticked."""
        dropped = [k for k, name in enumerate(names) if name not in kept]
        return change(lambda image, cells: image.drop(dropped), seen, threshold, request)

    def move(threshold: int | float, request: gr.Request) -> Any:
        """The same answer with another threshold. Nothing else changes, so that a notice that is there stays."""
        session = sessions.get(str(request.session_hash))
        one = session.exploration
        return gr.skip() if one is None else answer_html(session, one.answer(), threshold / 100)

    def undo(threshold: int | float, request: gr.Request) -> _Updates:
        """The answer without edits."""
        return act(lambda session: session.reset(), threshold, request)

    def teach(threshold: int | float, request: gr.Request) -> _Updates:
        """The answer of the model that has learned from what was painted."""
        return act(_teach, threshold, request)

    def explain(request: gr.Request) -> str:
        """The bars of the latest answer, which may take longer than it."""
        session = sessions.get(str(request.session_hash))
        one = session.exploration
        if one is None:
            return ""
        answer = one.answer()
        return bars_html(session, answer, one.contributions(answer))

    # One at a time, in the order in which they came: the model is one for all.
    one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
    # Gradio would drop what comes while the one before it is answered.
    each: dict[str, Any] = {**one, "trigger_mode": "multiple"}
    done = [
        on.upload.upload(open_file, [on.upload, on.unsure], [*on.shown, on.upload], api_name="open", **each),
        on.painter.paint(paint, [on.painter, on.brush, on.size, on.unsure], on.shown, api_name="paint", **each),
        on.parts.input(choose, [on.parts, on.unsure, on.painter], on.shown, api_name="parts", **each),
        on.reset.click(undo, [on.unsure], on.shown, api_name="undo", **one),
        on.learn.click(teach, [on.unsure], on.shown, api_name="learn", **one),
    ]
    on.unsure.input(move, [on.unsure], on.answer, api_name="unsure", trigger_mode="always_last", **one)
    if on.gallery is not None:
        done.append(on.gallery.select(open_example, [on.unsure], on.shown, api_visibility="private", **each))
    for event in done:
        event.then(explain, None, on.bars, api_visibility="private", **one)


def _teach(session: Session) -> str:
    """Learn, and say where the model is."""
    started = time.perf_counter()
    folder, images, left_out = session.learn(), len(session.learned), session.left_out
    little = f" Too little was painted on {', '.join(left_out)}: less than half of each patch." if left_out else ""
    return _note(
        f"Learned from {images} painted image{'s' * (images != 1)} in {time.perf_counter() - started:.1f} s. The new "
        f"model answers now, and is saved in {folder}.{little}",
        good=True,
    )


def _views(on: _Components, session: Session, threshold: int | float) -> _Updates:
    """All that is shown of a session but the notice and the bars; nothing before the first image."""
    import gradio as gr

    one = session.exploration
    if one is None:
        return {}
    found = one.answer()
    cells = zip(one.shown.flatten().tolist(), one.hidden.flatten().tolist(), strict=True)
    marks = "".join("t" if shown else "n" if hidden else "." for shown, hidden in cells)
    seen: dict[str, Any] = {"number": session.number, "value": json.dumps({"image": session.number, "cells": []})}
    names, share = _part_names(session.studio), one.parts
    labels = [f"{name} · {share[k]:.0%}" if k in share else f"{name} · none" for k, name in enumerate(names)]
    kept = [name for k, name in enumerate(names) if k not in one.dropped]
    return {
        on.painter: gr.HTML(
            image=data_uri(enlarge(one.view)), paint=marks, rows=one.grid[0], columns=one.grid[1], **seen
        ),
        on.parts: gr.CheckboxGroup(choices=list(zip(labels, names, strict=True)), value=kept),
        on.answer: answer_html(session, found, threshold / 100),
        on.pictures: pictures_html(session, found),
    }


def _part_names(studio: Studio) -> list[str]:
    return [f"part {k}" for k in range(studio.model.config.num_parts)]


def _note(text: str, good: bool = False) -> str:
    return f'<p role="alert"{" class=ifam-good" if good else ""}>{escape(printable(text))}</p>'


def _stroke(value: Any) -> tuple[int | None, list[tuple[int, int]]]:
    """Number of the image that a stroke was made on, None for any, and its cells; the value comes from anywhere."""
    try:
        found = json.loads(value or "[]")
        image, cells = (found["image"], found["cells"]) if isinstance(found, dict) else (None, found)
        return image, [(int(row), int(column)) for row, column in cells]
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise IfamError("The stroke is not a list of rows and columns; paint on the image.") from error

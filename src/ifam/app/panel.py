"""What the app shows of an answer, as HTML with the pictures in it."""

import base64
import io
from typing import Any

from PIL import Image

from ifam.app.exploration import Answer
from ifam.app.session import Session
from ifam.io import printable
from ifam.models.contributions import PartContributions
from ifam.report.bars import Bar, waterfall
from ifam.report.html import environment, percent
from ifam.report.overlays import enlarge, part_overlay, predictor_view

_TEMPLATES = "app/templates"


def resource(name: str) -> str:
    """A file of the page: its style or its script."""
    env = environment(_TEMPLATES)
    assert env.loader is not None, "the environment has one"
    return env.loader.get_source(env, name)[0]


def answer_html(session: Session, answer: Answer, threshold: float) -> str:
    """The class, how sure it is, and what the predictor saw.

    Args:
        session: The visitor's.
        answer: The answer to the image on the table.
        threshold: Confidence below which the answer is called unsure.
    """
    names, studio = session.studio.class_names, session.studio
    chosen = None if answer.classes is None else [names[c] for c in answer.classes]
    return _render(
        "answer.html.j2",
        label=printable(names[answer.prediction]),
        confidence=percent(answer.confidence),
        empty=answer.empty,
        unsure=answer.confidence < threshold,
        threshold=percent(threshold, 0),
        set=None if chosen is None else printable(", ".join(chosen)) or "none: it is like no class",
        error="" if studio.calibration is None else percent(studio.calibration.error, 0),
        calibrated=session.calibration is not None,
        corrected=studio.calibration is not None and session.calibration is None,
        plain=session.plain,
        name=printable(session.name),
        edited=answer.edited,
        milliseconds=round(1000 * answer.seconds),
        **_seen(session, answer),
    )


def bars_html(session: Session, answer: Answer, contributions: PartContributions | None) -> str:
    """Bars of what each part adds to the logit of the answer."""
    bars: list[Bar] = []
    if contributions is not None:
        bars = waterfall(*contributions.bars(0))
    label = printable(session.studio.class_names[answer.prediction])
    return _render("bars.html.j2", bars=bars, exact=contributions is not None and contributions.exact, label=label)


def pictures_html(session: Session, answer: Answer) -> str:
    """The parts in color, and exactly what the predictor saw."""
    assert session.exploration is not None, "there is an image"
    view = enlarge(session.exploration.view)
    selection = answer.output.selection
    assert selection is not None, "the model selects parts"
    number = session.model.config.num_parts
    present = [str(k) for k in answer.part_of_patch.unique().tolist() if k < number]
    return _render(
        "pictures.html.j2",
        parts=data_uri(part_overlay(view, selection.part_maps[0].cpu())),
        seen=data_uri(predictor_view(view, answer.mask)),
        legend=f"part {', '.join(present)}" if present else "none",
        name=printable(session.name),
        **_seen(session, answer),
    )


def data_uri(image: Image.Image) -> str:
    """A picture as text, so that it is never a file."""
    buffer = io.BytesIO()
    # Lossless: hidden patches are exactly the checker.
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _seen(session: Session, answer: Answer) -> dict[str, Any]:
    share = float(answer.output.visible_fraction[0])
    return {"visible": percent(share, 0), "unit": "pixels" if session.model.masks_pixels else "patches"}


def _render(template: str, **values: Any) -> str:
    # Braces and dollars would be read as a template by the page, too.
    text = environment(_TEMPLATES).get_template(template).render(**values)
    return text.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")

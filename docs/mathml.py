"""Hook of mkdocs: TeX becomes MathML when the site is built, which browsers show without a script or a network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of `$...$` and `$$...$$`.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the equations of a page.

    Args:
        content: The page in HTML, with TeX in it.
    """
    content = _BLOCK.sub(lambda found: convert(html.unescape(found[1].strip()), display="block"), content)
    return _INLINE.sub(lambda found: convert(html.unescape(found[1].strip())), content)

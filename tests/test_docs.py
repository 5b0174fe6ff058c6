"""The documentation: its pages are listed, its links lead somewhere, and it names every public object."""

import ast
import inspect
import os
import re
import subprocess
import sys
from functools import reduce
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import ifam

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TEXTS = {
    **{f"docs/{page}": (DOCS / page).read_text(encoding="utf-8") for page in PAGES},
    **{name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")},
}
DIRECTIVES = [(name, path) for name, text in TEXTS.items() for path in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]


def nav_pages(entry):
    """The pages below an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    entries = entry.values() if isinstance(entry, dict) else entry
    return [page for child in entries for page in nav_pages(child)]


def resolve(path):
    """The object of a dotted path."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[length:], module)
    raise ModuleNotFoundError(path)


def prose(text):
    """A page without its code."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """What the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = nav_pages(config["nav"])
    assert len(listed) == len(set(listed))
    assert sorted(listed) == PAGES


@pytest.mark.parametrize("name", TEXTS)
def test_relative_links_lead_somewhere(name):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(TEXTS[name])):
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        page = os.path.relpath(target, ROOT)
        if anchor.startswith("ifam."):
            assert resolve(anchor) is not None
            assert any(anchor.startswith(path) for where, path in DIRECTIVES if where == page), link
        elif anchor:
            assert anchor in anchors(TEXTS[page]), link


@pytest.mark.parametrize(("page", "path"), DIRECTIVES)
def test_what_the_reference_shows_exists_and_has_a_docstring(page, path):
    assert inspect.getdoc(resolve(path)), f"{page} shows {path}"


def test_every_public_name_is_in_the_reference():
    shown = [resolve(path) for _, path in DIRECTIVES]
    for name in ifam.__all__:
        assert any(getattr(ifam, name) is thing for thing in shown), f"show ifam.{name} on a page of docs/api"
        assert f"[`{name}`]" in TEXTS["docs/api/index.md"]


@pytest.mark.parametrize("name", TEXTS)
def test_paths_that_are_named_exist(name):
    for path in re.findall(r"`((?:tests|docs|recipes|examples|benchmarks)/[\w/.-]*)(?:::\w+)?`", TEXTS[name]):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_paths_of_the_package_that_contributing_names_exist():
    named = re.findall(r"^\| `([\w/]+(?:\.py|/))`", TEXTS["CONTRIBUTING.md"], re.MULTILINE)
    assert len(named) > 10
    for path in named:
        assert "NAME" in path or (ROOT / path).exists() or (ROOT / "src" / "ifam" / path).exists(), path


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "```python" in text])
def test_python_in_the_pages_is_valid_and_names_what_exists(name):
    for code in re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ifam":
                assert hasattr(ifam, node.attr), node.attr
            # What only an extra brings may not be installed here.
            if isinstance(node, ast.ImportFrom) and find_spec(node.module.partition(".")[0]):
                assert all(hasattr(import_module(node.module), alias.name) for alias in node.names)


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= 700
    assert len(re.findall(r"!\[", TEXTS["README.md"])) == 1


class Resources(HTMLParser):
    """What a page loads, and the text of its equations."""

    def __init__(self):
        super().__init__()
        self.loaded, self.equations = [], 0

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.equations += tag == "math"
        if tag in {"script", "img", "iframe", "source", "video", "audio", "embed", "object"}:
            self.loaded += [values[name] for name in ("src", "srcset", "data") if values.get(name)]
        if tag == "link" and values.get("rel") not in {"canonical", "next", "prev"}:
            self.loaded.append(values["href"])


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("mkdocs", "material", "mkdocstrings", "latex2mathml"))),
    reason="the extra `docs` is not installed (make docs)",
)
def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    equations = {}
    for path in tmp_path.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        page = Resources()
        page.feed(text)
        assert not [url for url in page.loaded if re.match(r"(https?:)?//", url)], path
        assert 'class="arithmatex"' not in text, path
        equations[path.relative_to(tmp_path).as_posix()] = page.equations
    assert min(equations["concepts.html"], equations["gradient.html"]) > 5
    for path in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path

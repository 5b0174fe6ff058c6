"""Nothing from outside is run: what could run it is not used, and settings files name values alone."""

import ast
import re
from pathlib import Path

import pytest

from ifam.cli.main import main

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
# Calls that run what they read, and the argument without which they do.
SAFE_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
NEVER = {
    *("os.system", "os.popen", "subprocess.getoutput", "torch.jit.load", "torch.hub.load", "joblib.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.Loader"),
}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "subprocess"}
# Files that know pickles to refuse code in them, that ask git for the commit, and that start `ifam` once a device.
KNOW = {
    "safe_pickle.py": {"pickle"},
    "prepare_siim_acr.py": {"pickle"},
    "provenance.py": {"subprocess"},
    "distributed.py": {"subprocess"},
}


def uses(code):
    """What a file names that may run code from outside, with the lines."""
    for node in ast.walk(ast.parse(code)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            yield from ((line, name) for name in names & MODULES)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILT_IN:
            yield line, node.func.id
        if isinstance(node, ast.Attribute) and (name := ast.unparse(node)) in NEVER:
            yield line, name
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "shell"):
            yield line, node.arg
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in SAFE_WITH:
            argument, value = SAFE_WITH[name]
            if not any(one.arg == argument and ast.literal_eval(one.value) is value for one in node.keywords):
                yield line, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_used_that_runs_what_it_reads(path):
    used = [
        (line, name) for line, name in uses(path.read_text(encoding="utf-8")) if name not in KNOW.get(path.name, ())
    ]
    assert not used, f"{path} names {used}"


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "import pickle",
        "from subprocess import run",
        "yaml.load(text, Loader=yaml.Loader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_such_a_use_would_be_found(code):
    assert list(uses(code))


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported."""
    (tmp_path / "stranger.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\nclass Trap:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "sprung").exists()


SPRINGS = "{class_path: stranger.Trap}"


@pytest.mark.parametrize(
    "text",
    [
        f"train: {SPRINGS}",
        f"data: {SPRINGS}",
        "model: {class_path: stranger.Trap, init_args: {}}",
        f"model: {{backbone_kwargs: {{block_fn: {SPRINGS}}}}}",
        f"model: {{backbone_kwargs: {{block_fn: [{SPRINGS}]}}}}",
        f"model: {{backbone_kwargs: '{{block_fn: {SPRINGS}}}'}}",
        "model: {backbone_kwargs: '{block_fn: {\"class\\u005fpath\": stranger.Trap}}'}",
        f"model: {{backbone_kwargs: {{a: &a {SPRINGS}, block_fn: *a}}}}",
        "model.backbone_kwargs.block_fn.class_path: stranger.Trap",
        "model: {backbone: !!python/object/apply:stranger.Trap []}",
        "model: !!python/module:stranger",
        "out: !!python/object/new:stranger.Trap []",
    ],
)
def test_a_settings_file_runs_nothing(trap, capsys, text):
    """YAML is read by the safe loader, and no class is imported that it names; the parser would, by itself."""
    (trap / "train.yaml").write_text(text + "\n")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", str(trap / "train.yaml")])
    assert stopped.value.code == 2
    # On a busy machine, lines of progress come before it.
    assert capsys.readouterr().err.splitlines()[-1].startswith("ifam: ")


@pytest.mark.parametrize(
    "words",
    [
        ["--model.backbone_kwargs", f"{{block_fn: {SPRINGS}}}"],
        ["--model.backbone_kwargs.block_fn.class_path", "stranger.Trap"],
        ["--model.backbone_kwargs.block_fn.class_path=stranger.Trap"],
        [f"--model.backbone_kwargs.block_fn={SPRINGS}"],
    ],
)
def test_an_option_runs_nothing(trap, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words])
    assert stopped.value.code == 2
    # On a busy machine, lines of progress come before it.
    assert capsys.readouterr().err.splitlines()[-1].startswith("ifam: ")


def test_every_promise_names_a_test_or_command_that_exists():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| promise .*?\n\|---.*?\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    assert len(rows) >= 12
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for promise, checks in rows:
        named = re.findall(r"`([^`]+)`", checks)
        assert named, promise
        for one in named:
            file, _, test = one.partition("::")
            if file.startswith("make "):
                assert re.search(rf"^{file.split()[1]}:", makefile, re.MULTILINE), one
            else:
                assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), one

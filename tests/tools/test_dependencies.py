"""Licenses of what is installed, and versions that must not be."""

import re
import sys
import tomllib
from itertools import chain, product

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools.dependencies import PYPROJECT, Package, bad_versions, closure, is_gpl, main, report

from ifam.errors import IfamError

PROJECT = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))


def install(site, name, *metadata, **files):
    """A package as pip leaves it in a folder of packages."""
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *metadata]))
    for file, text in files.items():
        (folder / file).write_text(text)
    (folder / "RECORD").write_text("\n".join(f"{folder.name}/{file},," for file in ("METADATA", *files)))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_nothing_that_is_installed_is_under_the_gpl_or_without_a_license(capsys):
    main()
    listed = capsys.readouterr().out
    extras = PROJECT["project"]["optional-dependencies"]
    assert re.findall(r"^([\w ]+):$", listed, re.MULTILINE) == ["base install", *extras]
    for text in PROJECT["project"]["dependencies"]:
        assert re.search(rf"^  {canonicalize_name(Requirement(text).name)} +\d\S* +\S", listed, re.MULTILINE), text
    # What a dependency brings.
    assert re.search(r"^  filelock +\d\S* +\S", listed, re.MULTILINE)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("GPL-3.0-or-later", True),
        ("AGPL-3.0-only", True),
        ("GNU General Public License v2 (GPLv2)", True),
        ("GNU Affero General Public License v3", True),
        ("MIT AND GPL-2.0-only", True),
        ("GPL-2.0 OR AGPL-3.0", True),
        ("LGPL-3.0-only", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("GPL-2.0-only OR MIT", False),
        ("MIT", False),
        ("Apache-2.0", False),
    ],
)
def test_the_gpl_is_told_from_what_is_not(statement, expected):
    assert is_gpl(statement) == expected


@pytest.mark.parametrize(
    ("metadata", "files", "words"),
    [
        (["License-Expression: AGPL-3.0-only"], {}, "is, or contains a library, under AGPL-3.0-only"),
        (["License: GPLv3"], {}, "under GPLv3"),
        (
            ["Classifier: License :: OSI Approved :: GNU General Public License v2 (GPLv2)"],
            {},
            "General Public License v2",
        ),
        ([], {}, "states no license"),
        # The wheel's own license is free, that of a library in it is not.
        (["License: BSD-3-Clause"], {"LICENSES_bundled.txt": "Name: x265\nLicense: GPLv2\n"}, "under GPLv2"),
    ],
)
def test_what_must_not_be_depended_on_is_named_and_the_status_is_2(site, capsys, monkeypatch, metadata, files, words):
    install(site, "far", *metadata, **files)
    install(site, "near", "License: MIT", "Requires-Dist: far; extra == 'more'", "Provides-Extra: more")
    project = {"project": {"dependencies": ["near[more]"], "optional-dependencies": {}}, "tool": PROJECT["tool"]}
    with pytest.raises(IfamError, match=rf"^far 1\.0 .*{re.escape(words)}.*; replace it, or leave it out\.$"):
        list(report(project))
    toml = "[project]\ndependencies = ['near[more]']\n[project.optional-dependencies]\n[tool.ifam]\nbad-versions = []\n"
    (site / "pyproject.toml").write_text(toml)
    monkeypatch.setattr("tools.dependencies.PYPROJECT", site / "pyproject.toml")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_extra_that_was_not_asked_for_is_not_followed(site):
    install(site, "near", "License: MIT", "Requires-Dist: gone; extra == 'more'", "Requires-Dist: away")
    packages, missing = closure(["near"])
    assert (set(packages), missing) == ({"near"}, {"away"})
    assert closure([f"near[more]; python_version > '{sys.version_info.major}'"])[1] == {"away", "gone"}


def test_versions_that_are_known_to_be_bad_are_refused():
    assert bad_versions(PROJECT, [Package("lightning", "2.6.5", "Apache-2.0")])
    assert not bad_versions(PROJECT, [Package("lightning", "2.6.6", "Apache-2.0"), Package("rich", "2.6.5", "MIT")])


def test_no_declared_bound_allows_a_bad_version():
    declared = chain(PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values())
    allowed = {one.name: one.specifier for one in map(Requirement, declared)}
    for bad in map(Requirement, PROJECT["tool"]["ifam"]["bad-versions"]):
        known = [".".join(map(str, numbers)) for numbers in product(range(4), range(20), range(20))]
        versions = list(bad.specifier.filter(known))
        assert versions, bad
        assert not list(allowed[bad.name].filter(versions)), bad

"""The dependencies of the base install and of each extra, with version and license: `make licenses`.

Licenses are those of the installed packages' metadata, and of the libraries that their wheels contain, as far as the
license files in them say. The command ends with status 2 where a package is under the GPL or AGPL, states no license,
or has a version that must not be installed (`tool.ifam.bad-versions` in pyproject.toml). Packages under the LGPL and
proprietary ones are named.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ifam.errors import IfamError

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Packages whose metadata have no license.
KNOWN = {"cuda-toolkit": "LicenseRef-NVIDIA-Proprietary"}
# The longest statement that is a name, not a text.
_NAME = 80
_GPL = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)
# The run-time libraries of GCC may be linked with anything.
_EXCEPTION = re.compile(r"\bWITH[ -](GCC|LLVM|Classpath|Bootloader)|exception", re.IGNORECASE)


class Package(NamedTuple):
    """An installed package.

    Attributes:
        name: Its name on the index.
        version: Its version.
        license: What its metadata state; empty for nothing.
        bundled: Licenses of the libraries in its wheel, as stated in its license files.
    """

    name: str
    version: str
    license: str
    bundled: tuple[str, ...] = ()

    def problem(self) -> str:
        """Why it must not be depended on; empty if it may."""
        if not self.license:
            return "states no license"
        copyleft = next(filter(is_gpl, (self.license, *self.bundled)), "").rstrip(".")
        return f"is, or contains a library, under {copyleft}" if copyleft else ""


def is_gpl(statement: str) -> bool:
    """Whether a license is the GPL or AGPL: not the LGPL, not with an exception for linking, and without a choice."""
    return all(_GPL.search(one) and not _EXCEPTION.search(one) for one in re.split(r"\s+OR\s+", statement))


def license_of(package: metadata.PackageMetadata) -> str:
    """The license that the metadata of a package state: an expression, classifiers, or the beginning of a text."""
    expressions, classifiers, texts = (
        package.get_all(k) or [] for k in ("License-Expression", "Classifier", "License")
    )
    named = [one.rpartition(" :: ")[2] for one in classifiers if re.match("License ::(?! OSI Approved$)", one)]
    return " AND ".join(expressions or named) or " ".join(" ".join(texts).split())[:_NAME]


def bundled_licenses(distribution: metadata.Distribution) -> Iterator[str]:
    """The licenses of libraries that are listed in a package's license files ("License: LGPLv3")."""
    for file in distribution.files or ():
        if re.search(r"\.dist-info/.*(licen[cs]e|copying)", str(file), re.IGNORECASE):
            path = Path(str(file.locate()))
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            yield from dict.fromkeys(re.findall(r"^License(?: for [^:\n]*)?: *(\S.{,79})", text, re.MULTILINE))


def installed(name: str) -> Package | None:
    """A package by its name; None if it is not installed."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    stated = license_of(found.metadata) or KNOWN.get(name, "")
    return Package(name, found.version, stated, tuple(bundled_licenses(found)))


def closure(requirements: Iterable[str]) -> tuple[dict[str, Package], set[str]]:
    """What requirements bring to this machine: installed packages by name, and names of those that are missing."""
    packages: dict[str, Package] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in {"", *requirement.extras} - {one for known, one in seen if known == name}:
            seen.add((name, wanted))
            if (package := packages.get(name) or installed(name)) is None:
                missing.add(name)
                continue
            packages[name] = package
            todo += [(Requirement(text), wanted) for text in metadata.requires(name) or ()]
    packages.pop("ifam", None)
    return packages, missing


def bad_versions(project: dict[str, Any], packages: Iterable[Package]) -> list[str]:
    """Installed packages of a version that must not be installed."""
    bad = [Requirement(text) for text in project["tool"]["ifam"]["bad-versions"]]
    return [
        f"{package.name} {package.version} must not be installed (pyproject.toml, bad-versions)"
        for package in packages
        for one in bad
        if canonicalize_name(one.name) == package.name and one.specifier.contains(package.version, prereleases=True)
    ]


def report(project: dict[str, Any]) -> Iterator[str]:
    """The list, line by line.

    Raises:
        IfamError: At the end, if a package must not be depended on.
    """
    extras = project["project"]["optional-dependencies"]
    listed: dict[str, Package] = {}
    for title, requirements in {"base install": project["project"]["dependencies"], **extras}.items():
        # `dev` asks for the other extras, which have lists of their own.
        packages, missing = closure(one for one in requirements if not one.startswith("ifam["))
        yield f"{title}:"
        for name, package in sorted(packages.items()):
            if name not in listed:
                yield f"  {name:32}{package.version:20}{package.license}"
        listed |= packages
        if missing:
            yield f"  not installed here, and so not looked at: {', '.join(sorted(missing))}"
    for title, words in {"LGPL": r"LGPL|Lesser|Library General", "proprietary": "proprietary"}.items():
        names = [p.name for p in listed.values() if re.search(words, " ".join((p.license, *p.bundled)), re.IGNORECASE)]
        yield f"{title}, or a library in the wheel is: {', '.join(sorted(names)) or 'none'}"
    problems = [f"{p.name} {p.version} {p.problem()}" for p in listed.values() if p.problem()]
    problems += bad_versions(project, listed.values())
    if problems:
        raise IfamError(f"{'; '.join(problems)}; replace it, or leave it out.")


def main() -> None:
    """Print the list; status 2 and a sentence where a package must not be depended on."""
    try:
        for line in report(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))):
            print(line)
    except IfamError as error:
        print(f"dependencies: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

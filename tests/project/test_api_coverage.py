"""Every public name is on the page of the API, and no page names what does not exist."""

import re
from importlib import import_module
from inspect import getdoc
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/leader").glob("*.md"))]
# Every module that says what is public in it.
PUBLIC = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("bilevel_envs", "leaders")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "\n__all__ = " in path.read_text()
]
MEMBERS = re.compile(r"\.\. automodule:: (\S+)\n   :members: (.*)")
DOTTED = re.compile(r"`((?:bilevel_envs|leaders)(?:\.\w+)+)(?:\(.*?\))?`")
TARGET = re.compile(r"\.\. auto\w+:: ([\w.]+)")
FILE = re.compile(
    r"(?<![\w/])((?:bilevel_envs|leaders|tests|examples|benchmarks|docs)/[\w/.-]+\.(?:py|ipynb|md|json|png))\b"
)


def resolves(dotted):
    """Whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if part not in fields and not hasattr(found, part):
                return False
            found = getattr(found, part, None)
        return True
    return False


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_api_with_what_it_is(package):
    text, module = (ROOT / "docs/api.md").read_text(), import_module(package)
    listed = {*TARGET.findall(text), *DOTTED.findall(text)}
    listed |= {f"{module}.{name}" for module, names in MEMBERS.findall(text) for name in names.split(", ")}
    names = [name for name in module.__all__ if not name.startswith("__")]
    assert not {f"{package}.{name}" for name in names} - listed
    assert not [name for name in names if not getdoc(getattr(module, name))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_only_what_exists(page):
    text = page.read_text() if page.stem != "changelog" else ""
    wrong = [name for name in {*DOTTED.findall(text), *TARGET.findall(text)} if not resolves(name)]
    wrong += [
        name
        for name in set(FILE.findall(text))
        if "/generated/" not in name and not any((folder / name).exists() for folder in (ROOT, page.parent))
    ]
    assert not wrong

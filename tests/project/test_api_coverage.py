"""Every public name is on a page of the documentation, and no page names what does not exist."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from bilevel_envs.followers import FOLLOWERS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/leader").glob("*.md"))]
PUBLIC = (
    "bilevel_envs",
    "bilevel_envs.followers",
    "bilevel_envs.parameterizations",
    "bilevel_envs.testing",
    "leaders",
    "leaders.exact",
)
# Pages that docs/conf.py generates, one for each.
GENERATED = {cls.__name__ for cls in FOLLOWERS.values()}
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
def test_every_public_name_is_documented(package):
    text = "\n".join(page.read_text() for page in PAGES)
    names = [name for name in import_module(package).__all__ if not name.startswith("__")]
    missing = [name for name in names if name not in GENERATED and not re.search(rf"\b{name}\b", text)]
    assert not missing


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

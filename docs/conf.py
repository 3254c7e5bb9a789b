"""Sphinx configuration; environment and follower pages are generated from their docstrings at every build."""

from __future__ import annotations

import inspect
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
from PIL import Image

import bilevel_envs
from bilevel_envs.followers import FOLLOWERS
from bilevel_envs.registration import PROBLEMS

project, author, release = "bilevel-envs", "The bilevel-envs developers", bilevel_envs.__version__
copyright = "2026, the bilevel-envs developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx-mathjax-offline"]
html_theme, html_title = "furo", "bilevel-envs"
html_static_path, html_css_files = ["_static"], ["small.css"]
exclude_patterns = ["_build", "jupyter_execute", "data"]  # tables that pages include
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the test run executes the notebooks; their outputs are committed
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_custom_sections = [
    "Description",
    "Action Space",
    "Observation Space",
    "Starting State",
    "Configuration",
    "Leader Reward",
    "Reward",
    "Episode End",
    "Optimum",
    "Information",
    "Arguments",
    "Best Known",
    "Advised",
    "Version History",
    ("Columns", "params_style"),
]

HERE = Path(__file__).parent


def environment_page(name: str) -> str:
    """One environment's page: picture, facts, docstring."""
    path, _ = PROBLEMS[name]
    module, cls = path.split(":")
    env = gym.make(name, render_mode="rgb_array")
    env.reset(seed=0)
    Image.fromarray(env.render()).save(HERE / "generated" / f"{cls}.png")
    face, best = env.unwrapped, env.unwrapped.best_known
    known = "none, see Best Known below" if best is None else f"{best:.6g} ({best.proof}; {best.source})"
    known = known.replace("|", r"\|")  # which would end the cell
    spaces = face.theta_space
    shown = f"../images/films/{cls}.webp" if (HERE / "images" / "films" / f"{cls}.webp").is_file() else f"{cls}.png"
    return f"""# {name}

```{{image}} {shown}
:alt: {inspect.getdoc(getattr(import_module(module), cls)).splitlines()[0]}
:width: {420 if shown.endswith(".webp") else 360}px
```

| | |
|---|---|
| made by | `gymnasium.make("{name}")` after `import bilevel_envs` |
| observation | `{env.observation_space}` |
| action | `{env.action_space}` |
| θ | shape {list(spaces.shape)}, between {spaces.low.min():g} and {spaces.high.max():g} |
| γ_L, γ_F, β | {face.preferences.gamma_leader:g}, {face.preferences.gamma_follower:g}, {face.preferences.beta:g} |
| time limit | {env.spec.max_episode_steps} steps |
| best leader value known | {known} |

{form_of(getattr(import_module(module), cls))}
```{{eval-rst}}
.. autoclass:: {module}.{cls}
   :members: model, parameterization
   :no-index:
```
"""


def form_of(problem: type) -> str:
    """A link to the environment that this one is a form of, where it is one."""
    pages = {path.split(":")[1]: name for name, (path, _) in PROBLEMS.items()}
    bases = [base.__name__ for base in problem.__mro__[1:] if base.__name__ in pages]
    if not bases:
        return ""
    name = pages[bases[0]]
    return (
        f"Spaces, rewards and all else that is not told here: [{name}](env-{name.split('/')[1].removesuffix('-v0')}).\n"
    )


def follower_page(name: str) -> str:
    """One follower's page: what it can give, how it responds, and where it lives."""
    cls = FOLLOWERS[name]
    how = "respond" if hasattr(cls, "respond") else "best_response"
    return f"""# {cls.__name__}

`BilevelWrapper(env, "{name}", ...)`, `bilevel train --follower {name}`, `bilevel_envs.followers.{cls.__name__}`, in
`{cls.__module__.replace(".", "/")}.py`.

```{{eval-rst}}
.. autoclass:: bilevel_envs.followers.{cls.__name__}
   :members: {how}
   :no-index:
```
"""


def relinked(text: str) -> str:
    """A notebook whose links, which lead through the repository, lead through the site."""
    text = re.sub(r"\]\((?:\.\./)+docs/", "](../", text)
    return re.sub(r"\]\((?:\.\./)*(?:tutorials/)?(\w+\.ipynb)", r"](\1", text)


def sited(app: object, page: str, source: list[str]) -> None:
    """Lets links to classes and notebooks, which lead through the repository, lead to their pages."""
    up = "../" * page.count("/") + "generated/"
    pages = {cls.__name__: f"follower-{cls.__name__}" for cls in FOLLOWERS.values()}
    pages |= {
        path.split(":")[1]: f"env-{name.split('/')[1].removesuffix('-v0')}" for name, (path, _) in PROBLEMS.items()
    }
    classes = r'\]\((?:\.\./)+bilevel_envs/[\w/]+\.py "(\w+)"\)'
    source[0] = re.sub(classes, lambda link: f"]({up}{pages[link[1]]}.md)", source[0])
    source[0] = re.sub(r"\]\((?:\.\./)+examples/(?:\w+/)*(\w+\.ipynb)\)", rf"]({up}\1)", source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", sited)


def generate(app: object = None) -> None:
    """Writes the generated pages anew."""
    folder = HERE / "generated"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in PROBLEMS:
        page = name.split("/")[1].removesuffix("-v0")
        (folder / f"env-{page}.md").write_text(environment_page(name))
    for name, cls in FOLLOWERS.items():
        (folder / f"follower-{cls.__name__}.md").write_text(follower_page(name))
    for notebook in (HERE.parent / "examples").rglob("*.ipynb"):
        (folder / notebook.name).write_text(relinked(notebook.read_text()))


generate()

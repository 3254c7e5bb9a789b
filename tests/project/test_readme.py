"""README shows what is: its table of environments and the output of its quickstart."""

import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from bilevel_envs.registration import PROBLEMS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_table_of_environments_is_made_of_the_environments():
    spec = util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.filled(README) == README, "run: python docs/tables.py"


def test_every_environment_has_a_thumbnail():
    shown = re.findall(r'<img src="([^"]+)"', README)
    assert len(shown) == len(PROBLEMS)
    for picture in shown:
        assert (ROOT / picture).stat().st_size < 20_000, "run: python docs/tables.py"


@pytest.mark.slow
def test_the_output_of_the_quickstart_is_what_it_prints():
    code, shown = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", README, re.DOTALL).groups()
    code = "import torch; torch.set_num_threads(1)\n" + code
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    numbers = r"-?\d+\.\d+"
    assert re.sub(numbers, "#", printed) == re.sub(numbers, "#", shown)
    wanted = [float(one) for one in re.findall(numbers, shown)]
    assert [float(one) for one in re.findall(numbers, printed)] == pytest.approx(wanted, abs=0.002)


def test_every_local_link_of_readme_and_docs_leads_to_a_committed_file():
    committed = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines())
    if not committed:
        pytest.skip("no checkout")
    folders = {str(parent) for name in committed for parent in Path(name).parents}
    dead = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/leader").glob("*.md")]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path = target.partition("#")[0]
            if not path or "://" in target or path.startswith("mailto:"):
                continue
            found = (page.parent / path).resolve().relative_to(ROOT).as_posix()
            if not {found, f"{found}.md"} & (committed | folders) and not (
                page.name == "index.md" and "generated/" in path
            ):
                dead.append(f"{page.name}: {target}")
    assert not dead

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


NUMBER = r"-?\d+\.\d+"


def agrees(shown, printed):
    """Whether each line that a page shows is printed, numbers within 0.002."""
    lines = {re.sub(NUMBER, "#", line): re.findall(NUMBER, line) for line in printed.splitlines()}
    for line in shown.splitlines():
        found = lines[re.sub(NUMBER, "#", line)]
        assert [float(one) for one in found] == pytest.approx(
            [float(one) for one in re.findall(NUMBER, line)], abs=0.002
        )


def printed_by(code):
    code = "import torch; torch.set_num_threads(1)\n" + code
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, 1])
def test_a_block_of_the_readme_runs_alone_and_prints_what_is_shown(block):
    blocks = re.findall(r"```python\n(.*?)```\n\nIt prints\n\n```text\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == README.count("```python") == 2
    code, shown = blocks[block]
    printed = printed_by(code)
    assert len(printed.splitlines()) == len(shown.splitlines())
    agrees(shown, printed)


@pytest.mark.slow
def test_the_quickstart_prints_what_it_shows():
    text, shown, _ = re.split(r"```text\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(), flags=re.DOTALL)
    agrees(shown, printed_by("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))))


def test_every_local_link_of_the_pages_leads_to_a_committed_file():
    committed = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines())
    if not committed:
        pytest.skip("no checkout")
    folders = {str(parent) for name in committed for parent in Path(name).parents}
    dead = []
    pages = [name for name in committed if name.endswith(".md") and not name.startswith((".github/", "tests/"))]
    assert {"README.md", "CONTRIBUTING.md", "docs/index.md", "benchmarks/leaderboard/README.md"} <= {*pages}
    for page in map(ROOT.joinpath, pages):
        text = page.read_text()
        for target in re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", text) + re.findall(r'src="([^"]+)"', text):
            path = target.partition("#")[0]
            if not path or "://" in target or path.startswith("mailto:"):
                continue
            found = (page.parent / path).resolve().relative_to(ROOT).as_posix()
            if not {found, f"{found}.md"} & (committed | folders):
                dead.append(f"{page.name}: {target}")
    assert not dead

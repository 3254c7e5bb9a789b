"""Imports point one way: a module may import only from rows above its own."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

ROWS = [
    [
        "bilevel_envs._checks",
        "bilevel_envs.autograd",
        "bilevel_envs.noise",
        "bilevel_envs.kernels",
        "bilevel_envs.banded",
        "bilevel_envs.drawing",
        "bilevel_envs.window",
    ],
    ["bilevel_envs.model", "bilevel_envs.networks"],
    [
        "bilevel_envs.parameterizations",
        "bilevel_envs.tabular",
        "bilevel_envs.linear_quadratic",
        "bilevel_envs.leader_networks",
        "bilevel_envs.simulated",
    ],
    [
        "bilevel_envs.policies",
        "bilevel_envs.quadratics",
        "bilevel_envs.envs.*",
        "bilevel_envs.markov_game",
        "bilevel_envs.guided_game",
    ],
    ["bilevel_envs.validation", "bilevel_envs.problems"],
    ["bilevel_envs.follower", "bilevel_envs.rollout", "bilevel_envs.pettingzoo_env", "bilevel_envs.transparent"],
    [
        "bilevel_envs.followers.soft_value_iteration",
        "bilevel_envs.followers.riccati",
        "bilevel_envs.followers.committed",
        "bilevel_envs.followers.soft_q_learning",
        "bilevel_envs.followers.network_policies",
        "bilevel_envs.followers.soft_dqn",
        "bilevel_envs.followers.sb3_env",
        "bilevel_envs.followers.sb3_agents",
        "bilevel_envs.env_base",
    ],
    ["bilevel_envs.markov_games.*", "bilevel_envs.followers.sb3_answers", "bilevel_envs.followers.shortfall"],
    [
        "bilevel_envs.followers.behavioural",
        "bilevel_envs.followers.sb3",
        "bilevel_envs.followers.observed",
        "bilevel_envs.followers.truncated",
        "bilevel_envs.tabular_env",
        "bilevel_envs.linear_env",
        "bilevel_envs.simulated_env",
        "bilevel_envs.tax_env",
    ],
    ["bilevel_envs.followers", "bilevel_envs.gym_env"],
    ["bilevel_envs.wrapper"],
    ["bilevel_envs.leader_env"],
    ["bilevel_envs.registration"],
    ["bilevel_envs"],
    [
        "leaders.words",
        "leaders.raw_parameters",
        "leaders.critic",
        "leaders.per_step",
        "leaders.history",
        "leaders.visits",
        "leaders.published",
        "leaders.ascent",
        "leaders.settings",
        "leaders.task",
        "leaders.watching",
        "leaders.statistics",
    ],
    [
        "leaders.saved",
        "leaders.theta",
        "leaders.monomials",
        "leaders.critics.monte_carlo",
        "leaders.values",
        "leaders.exact_tables",
        "leaders.exact_linear",
    ],
    ["leaders.critics.exact", "leaders.empirical"],
    ["leaders.critics.sarsa"],
    [
        "leaders.critics.least_squares",
        "leaders.critics.fitted_linear",
        "leaders.critics.network",
        "leaders.critics.stage_game",
        "leaders.critics.state_values",
        "leaders.critics.empirical",
        "leaders.baseline",
    ],
    ["leaders.critics", "leaders.cross_fit", "leaders.kicks", "leaders.weights", "leaders.exact"],
    [
        "leaders.continuation",
        "leaders.surrogate",
        "leaders.oracle",
        "leaders.knowledge",
        "leaders.fitted_reaction",
        "leaders.actor_critic",
    ],
    ["leaders.actor_critic_tables", "leaders.actor_critic_linear"],
    ["leaders.published_games", "leaders.sampling"],
    ["leaders.critic_choice"],
    ["leaders.train"],
    ["leaders.sampled"],
    ["leaders.search", "leaders.hpgd"],
    ["leaders.algorithms"],
    ["leaders"],
    ["leaders.plots", "leaders.video", "leaders.run", "leaders.compare"],
    ["leaders.reproduce", "leaders.reproduce_building", "leaders.reproduce_games", "leaders.reproduce_tax"],
    ["leaders.cli_arguments"],
    ["leaders.cli_reproduce", "leaders.cli_compare"],
    ["leaders.cli"],
]
# Names that a package's __init__ offers lazily or re-exports; importing the package means importing these rows.
FACADES = {"bilevel_envs.envs", "bilevel_envs.markov_games"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row_of(module: str) -> int:
    for index, row in enumerate(ROWS):
        if module in row or f"{module.rpartition('.')[0]}.*" in row:
            return index
    raise AssertionError(f"{module} has no row: give it one in {Path(__file__).name}")


def imported(tree: ast.AST, modules: set[str]) -> set[str]:
    """Our modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in modules}
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & modules) or {node.module}
    return found


def test_imports_point_one_way():
    files = {name_of(p): p for package in ("bilevel_envs", "leaders") for p in (ROOT / package).rglob("*.py")}
    modules = set(files)
    wrong = []
    for module, path in files.items():
        if module in FACADES or module == "bilevel_envs":
            continue  # its imports are lazy: entry points as strings, names on first use
        for other in imported(ast.parse(path.read_text()), modules):
            if module == "leaders.cli" and other == "bilevel_envs":
                continue
            if row_of(other) >= row_of(module):
                wrong.append(f"{module} (row {row_of(module)}) imports {other} (row {row_of(other)})")
    assert not wrong, "\n".join(wrong)


def test_the_check_would_notice():
    tree = ast.parse("def f():\n    from leaders.cli import main\n")
    assert imported(tree, {"leaders.cli"}) == {"leaders.cli"}
    assert row_of("leaders.cli") > row_of("bilevel_envs.model")

"""The tables of the leaderboard are those that the script makes of the files."""

from benchmarks.leaderboard import leaderboard


def test_the_pages_show_what_the_files_hold():
    assert leaderboard.TABLE.read_text() == leaderboard.tables()
    readme = leaderboard.README.read_text()
    assert leaderboard.BEGIN in readme
    assert leaderboard.with_overview(readme) == readme


def test_every_file_was_made_within_its_budgets():
    for one in leaderboard.entries():
        steps, solves = one["budget"]["env_steps"], one["budget"]["follower_solves"]
        assert len(one["values"]) == leaderboard.SEEDS
        assert max(one["env_steps"]) <= steps
        assert max(one["follower_solves"]) <= solves
        assert (steps, solves) == (leaderboard.ENVS[one["environment"]][2], leaderboard.SOLVES)

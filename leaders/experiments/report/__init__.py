"""A study as one page: what was run, how it ended, and the pictures."""

from leaders.experiments.report.page import write_report

__all__ = ["write_report"]

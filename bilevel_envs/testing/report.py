"""What a checker looked at and what it found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import Generic, TypeVar

S = TypeVar("S")


class Skipped(Exception):
    """Raised by a check that has nothing to look at; its message says why."""


class Absent(Skipped):
    """Raised by a check of a part that the subject does not have; no report mentions it."""


class ConformanceError(AssertionError):
    """Raised with all findings of a checker.

    Attributes:
      report: the report that holds them.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(str(report))


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
      looked_at: what was compared with what.
      found: what came out, in numbers.
      change: what to change.
    """

    looked_at: str
    found: str
    change: str

    def __str__(self) -> str:
        return f"looked at: {self.looked_at}\nfound:     {self.found}\nchange:    {self.change}"


@dataclass(frozen=True)
class Result:
    """What came of one check.

    Attributes:
      name: of the check.
      findings: the faults; none if all is well.
      skipped: why nothing was looked at; empty if something was.
      notes: warnings of the checkers of other libraries.
      waits_for: the check that has to find nothing first; empty for none.
    """

    name: str
    findings: tuple[Finding, ...] = ()
    skipped: str = ""
    notes: tuple[str, ...] = ()
    waits_for: str = ""

    def __str__(self) -> str:
        if self.skipped:
            return f"skip  {self.name}: {self.skipped}"
        lines = [f"{'fail' if self.findings else 'ok':4s}  {self.name}"]
        lines += [f"      {line}" for finding in self.findings for line in str(finding).splitlines()]
        lines += [f"      note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The results of a checker.

    Attributes:
      subject: what was checked.
      results: one for each check, in the order in which they ran.
    """

    subject: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def findings(self) -> dict[str, tuple[Finding, ...]]:
        """The faults, by the name of the check that found them."""
        return {result.name: result.findings for result in self.results if result.findings}

    @property
    def verdict(self) -> str:
        """How many findings there are in how many checks, in one line."""
        count = sum(map(len, self.findings.values()))
        left = sum(bool(result.skipped) for result in self.results)
        found = f"{count or 'no'} finding{'' if count == 1 else 's'} in {len(self.results) - left} checks"
        return f"{self.subject}: {found}" + (f", {left} skipped" if left else "")

    def __add__(self, other: Report) -> Report:
        return Report(self.subject, (*self.results, *other.results))

    def __str__(self) -> str:
        told = [result for result in self.results if result.findings or result.notes]
        skipped: dict[str, list[str]] = {}
        for result in self.results:
            if result.skipped:
                skipped.setdefault(result.skipped, []).append(result.name)
        return "\n".join([self.verdict, *map(str, told), *(_skips(why, names) for why, names in skipped.items())])


def _skips(why: str, names: Sequence[str]) -> str:
    """Checks that were skipped for the same reason."""
    return "\n".join([f"skip  {why}", *(f"      {name}" for name in names)])


@dataclass(frozen=True)
class Check(Generic[S]):
    """One check of a subject.

    Attributes:
      name: what holds where it finds nothing.
      look: yields what it finds; may raise `Skipped`.
      needs: names of checks without which its findings would repeat theirs: it is skipped where one of them failed.
    """

    name: str
    look: Callable[[S], Iterable[Finding]]
    needs: tuple[str, ...] = ()


def results_of(checks: Sequence[Check[S]], subject: S) -> tuple[Result, ...]:
    """Runs checks in their order."""
    failed: set[str] = set()
    results = []
    for check in checks:
        missing = [name for name in check.needs if name in failed]
        if missing:
            failed.add(check.name)
            results.append(Result(check.name, skipped=f"needs “{missing[0]}”", waits_for=missing[0]))
            continue
        try:
            results.append(_result(check, subject))
        except Absent:
            continue
        if results[-1].findings:
            failed.add(check.name)
    return tuple(results)


def _result(check: Check[S], subject: S) -> Result:
    """What one check finds; an exception is a finding, too."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            findings = tuple(check.look(subject))
        except Absent:
            raise
        except Skipped as reason:
            return Result(check.name, skipped=str(reason))
        except Exception as error:
            findings = (_raised(check.name, error),)
    notes = dict.fromkeys(_plain(str(one.message)) for one in told if issubclass(one.category, UserWarning))
    return Result(check.name, findings, notes=tuple(notes))


def _raised(name: str, error: Exception) -> Finding:
    """An exception as a finding, with the place outside of the checkers where it was raised."""
    here = str(Path(__file__).parent)
    outside = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(here)]
    place = f" ({outside[-1].filename}, line {outside[-1].lineno})" if outside else ""
    return Finding(
        name,
        f"{type(error).__name__}: {error}{place}",
        "mend what the message names; the place is where it was raised, outside of this library's checkers",
    )


def _plain(text: str) -> str:
    """A warning of Gymnasium's without colours and its first word."""
    for mark in ("\x1b[33m", "\x1b[0m", "WARN: "):
        text = text.replace(mark, "")
    return text.strip()


def finish(report: Report, raises: bool) -> Report:
    """Returns the report, or raises a `ConformanceError` with what was found."""
    if raises and not report.ok:
        raise ConformanceError(report)
    return report

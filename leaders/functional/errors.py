"""Errors that estimators and critics share."""

from __future__ import annotations


class TooFewTransitions(ValueError):
    """Raised where a regression has more unknowns than transitions.

    Args:
      wanted_by: what is fitted, as users write it.
      needed: how many numbers that are.
      got: transitions that it was given.
      half: whether those are one half of a batch, as cross-fitting deals it.
    """

    def __init__(self, wanted_by: str, needed: int, got: int, half: bool = False) -> None:
        self.wanted_by, self.needed, self.got = wanted_by, needed, got
        where, remedy = ("", "") if not half else (" in each half of a batch", ", or pass `cross_fit=False`")
        super().__init__(
            f"{wanted_by} fits {needed} numbers here and needs at least as many transitions{where}, got {got}: raise "
            f"`batch_size`{remedy}"
        )

    def of_half(self) -> TooFewTransitions:
        """The same, said of one half of a batch."""
        return TooFewTransitions(self.wanted_by, self.needed, self.got, half=True)

"""A claim that is often made, the numbers it is held against, and the verdict that they give.

Evidence is an interval and the side of a threshold on which the claim puts it. The whole interval there: yes.
The whole interval on the other side: no. Otherwise the data leave it open. A claim holds where all its evidence
says yes, fails where all says no, is undecided where all is open, and depends in every other case.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from course_lib.errors import unknown

import numpy as np
from scipy import stats

VERDICTS = ("holds", "depends", "fails", "undecided")


@dataclass(frozen=True)
class Interval:
    """A value and the range that the data leave it; a number known exactly has no width."""

    low: float
    value: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Interval":
        return cls(value, value, value)

    @classmethod
    def mean(cls, values: Sequence[float], confidence: float = 0.95) -> "Interval":
        """Student's t interval of the mean; raises ValueError for fewer than two values."""
        values = np.asarray(values, dtype=float)
        if len(values) < 2:
            raise ValueError(
                "An interval needs at least two values, one a seed; use Interval.exact for a single number."
            )
        center = float(values.mean())
        half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        return cls(center - half, center, center + half)

    @classmethod
    def difference(cls, a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> "Interval":
        """Interval of the mean of a − b, paired (the same seeds in the same order)."""
        if len(a) != len(b):
            raise ValueError(f"Paired values must be as many on both sides; got {len(a)} and {len(b)}.")
        return cls.mean(np.subtract(a, b), confidence)


def paired_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of a paired t test of a against b (one value a seed)."""
    return float(stats.ttest_rel(a, b).pvalue)


@dataclass(frozen=True)
class Evidence:
    """One number that the claim says lies above (">") or below ("<") a threshold."""

    what: str
    interval: Interval
    needs: str
    threshold: float
    digits: int = 1

    def __post_init__(self):
        if self.needs not in (">", "<"):
            raise unknown("comparison", self.needs, (">", "<"))

    @property
    def says(self) -> str:
        """ "yes", "no" or "open"."""
        inside, outside = self.interval.low > self.threshold, self.interval.high < self.threshold
        if self.needs == "<":
            inside, outside = outside, inside
        return "yes" if inside else "no" if outside else "open"

    def __str__(self) -> str:
        i, d = self.interval, self.digits
        spread = "" if i.low == i.high else f" [{i.low:,.{d}f}, {i.high:,.{d}f}]"
        return f"{self.what}: {i.value:,.{d}f}{spread}; needs {self.needs} {self.threshold:,g}: {self.says}"


@dataclass(frozen=True)
class Claim:
    """What is often said, and its evidence; `verdict` follows from the numbers alone."""

    text: str
    evidence: tuple[Evidence, ...]

    @property
    def verdict(self) -> str:
        said = {evidence.says for evidence in self.evidence}
        if said == {"yes"}:
            return "holds"
        if said == {"no"}:
            return "fails"
        return "undecided" if said == {"open"} else "depends"

    def __str__(self) -> str:
        lines = [f"“{self.text}”", *(f"   {evidence}" for evidence in self.evidence), f"   → {self.verdict}"]
        return "\n".join(lines)


def judge(text: str, *evidence: Evidence) -> Claim:
    """Print a claim with its evidence and verdict, and return it; raises ValueError without evidence."""
    if not evidence:
        raise ValueError("A claim needs at least one piece of evidence.")
    claim = Claim(text, evidence)
    print(claim)
    return claim

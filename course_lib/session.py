"""What a lesson knows about the machine that it runs on."""

import os
import platform
import warnings
from dataclasses import dataclass
from typing import TypeVar

from course_lib.errors import unknown

T = TypeVar("T")
PROFILES = ("quick", "full")


@dataclass(frozen=True)
class Session:
    """seed: of every random generator; device: "cpu", "cuda" or "mps"; profile: "quick" or "full"."""

    seed: int
    device: str
    profile: str

    def pick(self, *, quick: T, full: T) -> T:
        """The value for this profile: `quick` fits a minute on two CPU cores, `full` wants a GPU."""
        return full if self.profile == "full" else quick


def quiet() -> None:
    """Silence what would clutter a lesson: progress bars of file loading, load reports, advisories."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Trainer pins memory by default; on a machine without an accelerator torch warns at every epoch.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # peft asks transformers by a name that is to go.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")


def limit_threads() -> None:
    """As many threads as cores, on a hub at most half as many as it grants: for small operations, a thread on a core
    that is not free costs more than it brings. Never more than torch has, which heeds OMP_NUM_THREADS."""
    import psutil
    import torch

    cores = psutil.cpu_count(logical=False) or (os.cpu_count() or 2) // 2
    # JupyterHub says by CPU_LIMIT how many of the machine's processors are this reader's.
    granted = float(os.environ.get("CPU_LIMIT") or 2 * cores)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores, int(granted / 2))))


def best_device() -> str:
    """ "cuda" where a GPU can be used, "mps" on Apple silicon, else "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def start(seed: int = 0) -> Session:
    """Seed, quiet and choose; the profile is "full" on a CUDA GPU, else "quick", or what COURSE_PROFILE says.

    Raises ValueError where COURSE_PROFILE is neither.
    """
    import torch
    import transformers

    quiet()
    limit_threads()
    transformers.set_seed(seed)
    device = best_device()
    profile = os.environ.get("COURSE_PROFILE") or ("full" if device == "cuda" else "quick")
    if profile not in PROFILES:
        raise unknown("COURSE_PROFILE", profile, PROFILES)
    print(
        f"Python {platform.python_version()} · torch {torch.__version__.split('+')[0]} · "
        f"transformers {transformers.__version__} · device {device} · profile {profile} · seed {seed}"
    )
    return Session(seed, device, profile)

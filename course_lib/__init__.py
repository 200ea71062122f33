"""Fine-Tuning, Measured: the support library of the course.

Importing the package is instant and loads no deep-learning library; its modules load what they need.
"""

import ctypes
import logging
import os

__version__ = "0.1.0"
# glibc's names for what `_keep_freed_memory` sets (malloc.h), and the largest value that fits.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _LARGEST = -1, -2, -4, 2**31 - 1

# Hugging Face's libraries read these when they are first imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
if os.environ.get("COURSE_MODELS") != "hub":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
# bitsandbytes warns of an optional package at the moment another library imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones. By default it returns large blocks to the system,
    which hands them out again page by page, zeroed: fine-tuning MiniLM took half as long again. What is free below the
    last block in use stays with the process, and up to 2 GB above it."""
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(libc, "mallopt"):
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, 2**26)):
            libc.mallopt(option, value)


_keep_freed_memory()


def setup(seed: int = 0):
    """Prepare a lesson: seed everything, quiet the libraries, choose the device; prints one line.

    Returns a `course_lib.session.Session` (seed, device, profile). See there for `COURSE_PROFILE`.
    """
    from course_lib.session import start

    return start(seed)

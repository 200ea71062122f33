"""Fine-Tuning, Measured: the support library of the course.

Importing the package is instant and loads no deep-learning library; its modules load what they need.
"""

import logging
import os

__version__ = "0.1.0"

# Hugging Face's libraries read these when they are first imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if os.environ.get("COURSE_MODELS") != "hub":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
# bitsandbytes warns of an optional package at the moment another library imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def setup(seed: int = 0):
    """Prepare a lesson: seed everything, quiet the libraries, choose the device; prints one line.

    Returns a `course_lib.session.Session` (seed, device, profile). See there for `COURSE_PROFILE`.
    """
    from course_lib.session import start

    return start(seed)

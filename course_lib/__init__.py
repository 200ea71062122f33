"""Fine-Tuning, Measured: the support library of the course.

Importing the package is instant and loads no deep-learning library; its modules load what they need.
"""

__version__ = "0.1.0"


def setup(seed: int = 0):
    """Prepare a lesson: seed everything, quiet the libraries, choose the device; prints one line.

    Returns a `course_lib.session.Session` (seed, device, profile). See there for `COURSE_PROFILE`.
    """
    from course_lib.session import start

    return start(seed)

"""What holds for all tests: no progress bars, and no time limit an example on a machine that may be busy."""

import os

from hypothesis import settings

# The lessons run in kernels of their own, which inherit it.
os.environ.setdefault("TQDM_DISABLE", "1")
settings.register_profile("course", deadline=None)
settings.load_profile("course")

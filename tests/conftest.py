"""What holds for all tests: no progress bars, and no time limit an example on a machine that may be busy."""

import os

from course_lib.runs import slug

import pytest
from hypothesis import settings

# The lessons run in kernels of their own, which inherit it.
os.environ.setdefault("TQDM_DISABLE", "1")
settings.register_profile("course", deadline=None)
settings.load_profile("course")


def pytest_generate_tests(metafunc):
    """A test that takes `log` runs once for each device of its module's RECORDED."""
    if "log" in metafunc.fixturenames and (recorded := getattr(metafunc.module, "RECORDED", None)) is not None:
        metafunc.parametrize("log", recorded.values(), ids=[slug(device) for device in recorded])


@pytest.fixture
def groups(request, log):
    """Of the module's study: setting → its recorded runs at the tuned rate, where every seed is there."""
    study = request.module.study
    return {name: group for name in study.SETTINGS if (group := study.tuned(log, name))}


@pytest.fixture(scope="module")
def one_thread():
    """Networks as small as the tests' lose time on a second thread, above all where tests run side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def on_the_cpu(one_thread):
    """Training on one thread of the processor: a GPU would not give the same bits twice."""
    from course_lib import training
    from course_lib.experiments import embedding, instruction_tuning, prefix_tuning

    with pytest.MonkeyPatch.context() as patch:
        for module in (training, embedding, instruction_tuning, prefix_tuning):
            patch.setattr(module, "best_device", lambda: "cpu")
        yield


@pytest.fixture(scope="module")
def tokenizer():
    """That of the course's language model."""
    from course_lib import models

    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models.LM_FOLDER)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; see `chromium.needs_chromium`."""
    from chromium import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        try:
            yield chromium
        finally:
            chromium.close()

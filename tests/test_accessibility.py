"""Figures for readers who see other colours, or fewer contrasts. (Sentences for every figure: test_notebooks and
test_book; sliders moved with the keyboard: test_browser.)"""

import itertools
import re

from course_lib import plots
from course_lib.slides import TEMPLATE

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from test_plots import PICTURES

# What eyes without one kind of cone see: linear RGB, Machado et al. 2009, severity 1.
EYES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def lab(colour, eye) -> np.ndarray:
    """CIELAB coordinates of a colour as such eyes see it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(np.array(eye) @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES.values(), ids=EYES)
def test_colours_differ_for_all_eyes(eye):
    seen = {colour: lab(colour, eye) for colour in plots.COLOURS}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


def test_red_and_green_would_not():
    seen = [lab(colour, EYES["deuteranopia"]) for colour in ("#b06000", "#708000")]
    assert np.linalg.norm(seen[0] - seen[1]) < 15


def test_series_differ_without_colours():
    looks = [plots._look(i) for i in range(len(plots.COLOURS))]
    for part in ("marker", "linestyle"):
        assert len({look[part] for look in looks}) == len(looks)


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [("white", "black", 21), ("black", "black", 1), ("#777777", "white", 4.48), ("#0000ff", "white", 8.59)],
)
def test_contrast_is_that_of_the_standard(one, other, ratio):
    assert plots.contrast(one, other) == plots.contrast(other, one) == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("name", PICTURES)
def test_text_in_figures_can_be_read(name, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **more: (drawn.append(self), save(self, *a, **more))[1])
    PICTURES[name][0]()
    for text in (one for one in drawn[0].findobj(Text) if one.get_text().strip() and one.get_visible()):
        images = text.axes.findobj(AxesImage) if text.axes and text.get_transform() == text.axes.transData else []
        behind = "white"
        if images:
            column, row = map(round, text.get_position())
            behind = to_hex(images[0].to_rgba(images[0].get_array())[row, column])
        assert plots.contrast(text.get_color(), behind) >= 4.5, (text.get_text(), text.get_color(), behind)


@pytest.mark.parametrize("share", np.linspace(0, 1, 11))
def test_ink_can_be_read_on_every_grey(share):
    assert plots.contrast(plots.ink((share,) * 3), (share,) * 3) >= 4.5


def test_text_on_slides_can_be_read():
    colours = re.findall(r"[^-]color: (#\w+)", TEMPLATE.read_text(encoding="utf-8"))
    grounds = ["#ffffff", *re.findall(r"background: (#\w+)", TEMPLATE.read_text(encoding="utf-8"))]
    assert colours and all(plots.contrast(*pair) >= 4.5 for pair in itertools.product(colours, grounds))

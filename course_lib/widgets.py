"""Sliders over a figure that GitHub, nbconvert, nbval and a live notebook all show."""

import base64
from collections.abc import Callable

from course_lib.plots import Picture

import ipywidgets


class Explorer:
    """A figure with sliders under it.

    draw(**values) returns a Picture for the sliders' values. The output carries the picture of the first values as a
    static PNG with its sentence of text, so that it is there without a kernel too. An error in the first drawing
    is an error of the cell.
    """

    def __init__(self, draw: Callable[..., Picture], **sliders: ipywidgets.Widget):
        self.draw, self.sliders = draw, sliders
        self.first = draw(**self.values())
        self.image = ipywidgets.Image(value=self.first.png, format="png", layout={"max_width": "100%"})
        self.image.layout.width = f"{self.first.width}px"
        self.caption = ipywidgets.Label(self.first.alt)
        for slider in sliders.values():
            # A figure takes longer than a slider's tick: draw when the handle is let go.
            slider.continuous_update = False
            slider.style.description_width = "14em"
            slider.layout.width = "36em"
            slider.observe(self._redraw, "value")
        self.box = ipywidgets.VBox([*sliders.values(), self.image, self.caption])

    def values(self) -> dict:
        """What the sliders stand at."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def _redraw(self, _change) -> None:
        picture = self.draw(**self.values())
        self.image.value, self.caption.value = picture.png, picture.alt

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        bundle = self.box._repr_mimebundle_()
        static = {"text/plain": self.first.alt, "image/png": base64.b64encode(self.first.png).decode()}
        return {**bundle, **static}

"""Sliders over a figure, and questions to a model, that GitHub, nbconvert, nbval and a live notebook all show."""

import base64
import html
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
        # A Label would cut a long sentence off.
        self.caption = ipywidgets.HTML(html.escape(self.first.alt), layout={"max_width": self.image.layout.width})
        for slider in sliders.values():
            # A figure takes longer than a slider's tick: draw when the handle is let go.
            slider.continuous_update = False
            slider.style.description_width = "14em"
            slider.layout.width = "42em"
            slider.observe(self._redraw, "value")
        self.box = ipywidgets.VBox([*sliders.values(), self.image, self.caption])

    def values(self) -> dict:
        """What the sliders stand at."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def _redraw(self, _change) -> None:
        picture = self.draw(**self.values())
        self.image.value, self.caption.value = picture.png, html.escape(picture.alt)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        bundle = self.box._repr_mimebundle_()
        static = {"text/plain": self.first.alt, "image/png": base64.b64encode(self.first.png).decode()}
        return {**bundle, **static}


class Dialog:
    """A text box and a button; what answer(text) says to the text stands below.

    The output carries the first text with its answer as plain text, so that it is there without a kernel too. An error
    in the first answer is an error of the cell; a later one is shown in place of an answer.
    """

    def __init__(self, answer: Callable[[str], str], first: str):
        self.answer, self.first = answer, f"{first}\n\n{answer(first)}"
        self.text = ipywidgets.Textarea(value=first, rows=6, layout={"width": "46em"})
        self.button = ipywidgets.Button(description="Ask", button_style="primary")
        self.said = ipywidgets.HTML(value=_plain(self.first.removeprefix(f"{first}\n\n")))
        self.button.on_click(self._ask)
        self.box = ipywidgets.VBox([self.text, self.button, self.said])

    def _ask(self, _button) -> None:
        self.said.value = "…"
        try:
            said = self.answer(self.text.value)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        self.said.value = _plain(said)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {**self.box._repr_mimebundle_(), "text/plain": self.first}


def _plain(text: str) -> str:
    return f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"


class Quiz:
    """A question with options, of which one is right; which one is for the cell to compute.

    options: text → whether it is right. why: what is said once the right one is found. Raises ValueError unless exactly
    one is right, so that a quiz whose numbers have changed is an error of its cell. Without a kernel the output is the
    question with the answer folded away.
    """

    def __init__(self, question: str, options: dict[str, bool], why: str):
        right = [text for text, is_right in options.items() if is_right]
        if len(right) != 1:
            raise ValueError(f"Exactly one option must be right, here are {len(right)}: {right}")
        self.question, self.options, self.right, self.why = question, list(options), right[0], why
        # Buttons, not radio buttons: those want arrow keys, which JupyterLab takes for itself.
        self.choice = ipywidgets.ToggleButtons(options=self.options, index=None, style={"button_width": "auto"})
        self.said = ipywidgets.HTML()
        self.choice.observe(self._answer, "index")
        asked = ipywidgets.HTML(f"<b>{html.escape(question)}</b>")
        self.box = ipywidgets.VBox([asked, self.choice, self.said])

    def _answer(self, _change) -> None:
        right = self.choice.value == self.right
        self.said.value = f"Right. {html.escape(self.why)}" if right else "No. Try another one."

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        listed = "".join(f"<li>{html.escape(option)}</li>" for option in self.options)
        answer = f"{html.escape(self.right)}. {html.escape(self.why)}"
        static = (
            f"<p><b>{html.escape(self.question)}</b></p>\n<ul>{listed}</ul>\n"
            f"<details><summary>Answer</summary>{answer}</details>"
        )
        text = "\n".join([self.question, *(f"  ○ {option}" for option in self.options)])
        return {**self.box._repr_mimebundle_(), "text/html": static, "text/plain": text}

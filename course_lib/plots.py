"""Every figure of the course, in one style: Okabe–Ito colours, markers and line styles that also tell series apart.

Each function returns a Picture: the PNG, text that says what it shows, and the numbers drawn.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

# Okabe and Ito's palette, the yellow left out (too pale for lines on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "figure.facecolor": "white",
}
DPI = 110


@dataclass(frozen=True)
class Picture:
    """A figure as PNG bytes, `alt` in a sentence, `data` as drawn; `width` in pixels.

    more: the numbers in words, for those who do not see the figure.
    """

    png: bytes
    alt: str
    data: dict
    width: int
    more: str = ""

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        words = f"{self.alt} {self.more}".strip()
        return {"image/png": base64.b64encode(self.png).decode(), "text/plain": words}


def _picture(
    width: float, height: float, alt: str, data: dict, draw: Callable, columns: int = 1, more: str = ""
) -> Picture:
    """draw(axes, …) on a figure of that size in inches."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        draw(*axes)
        buffer = io.BytesIO()
        # No date and no version in the file: the same figure is the same bytes.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return Picture(buffer.getvalue(), alt, data, round(width * DPI), more)


def contrast(one, other) -> float:
    """Of two colours, from 1 to 21 (WCAG 2.2, "contrast ratio"); text wants 4.5 at least."""
    lights = []
    for colour in (one, other):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def ink(background) -> str:
    """Black or white, whichever can be read better on a colour."""
    return max(("black", "white"), key=lambda colour: contrast(colour, background))


def _look(i: int) -> dict:
    return {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": LINES[i % 7], "markersize": 7}


def _log_ticks(axes, values: Sequence[float], show: Callable[[float], str]) -> None:
    """A log x axis with labels at powers of ten, and at 2 and 5 between them where the values span little."""
    axes.set_xscale("log")
    narrow = max(values) < 30 * min(values)
    axis = axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_formatter(NullFormatter())


# Where a label may stand beside its point, in points of 1/72 inch: near it, or farther off with a line to it.
_BESIDE = [(-6, 4), (6, 4), (6, -14), (-6, -14)]
_BESIDE += [
    (sign * (8 + 6 * step), up * (12 + 12 * step)) for step in range(1, 8) for up in (1, -1) for sign in (-1, 1)
]


def _label(axes, places: Mapping[str, tuple[float, float]], bold: Sequence[str]) -> None:
    """Write each name inside the axes beside its place, where it covers the fewest other names and places."""
    figure = axes.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    # The layout is settled before the labels; they do not change it.
    figure.draw_without_rendering()
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(list(places.values()))]
    for name, place in places.items():
        text = axes.annotate(
            name, place, (0, 0), textcoords="offset points", in_layout=False, fontsize=9,
            weight="bold" if name in bold else "normal", path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "#888888", "shrinkB": 5},
        )  # fmt: skip

        def box(across: float, up: float, text=text) -> Bbox:
            text.set(position=(across, up), horizontalalignment="left" if across > 0 else "right")
            text.update_positions(renderer)
            return Text.get_window_extent(text, renderer)

        def covered(beside: tuple[float, float], box=box) -> int:
            found = box(*beside)
            outside = not (axes.bbox.contains(*found.min) and axes.bbox.contains(*found.max))
            return 100 * outside + sum(found.overlaps(other) for other in taken)

        best = min(_BESIDE, key=covered)
        taken.append(box(*best))
        text.arrow_patch.set_visible(abs(best[1]) > 14)


def _scaled(value: float, units: tuple[str, ...], smallest: str) -> str:
    """Three significant digits with the largest unit of powers of a thousand that fits."""
    for power, unit in zip(range(len(units), 0, -1), units, strict=True):
        # 999,500 and more round to the next unit.
        if abs(value) >= 0.9995 * 1000**power:
            return f"{value / 1000**power:.3g}{unit}"
    return f"{value:.3g}{smallest}"


def human(value: float) -> str:
    """1,234,567 → 1.23M: for axes and labels."""
    return _scaled(value, ("T", "B", "M", "K"), "")


def human_bytes(value: float) -> str:
    """Bytes in powers of ten: 90,276,904 → 90.3 MB."""
    return _scaled(value, (" TB", " GB", " MB", " kB"), " B")


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence]],
    *,
    x: str,
    y: str,
    title: str,
    alt: str,
    log_x: bool = False,
    log_y: bool = False,
    baseline: tuple[str, float] | None = None,
    percent: bool = False,
) -> Picture:
    """Lines over x: name → (xs, ys). A y that is itself a sequence is drawn as mean ± standard deviation.

    baseline: (name, value) of a dotted line that a reader should compare with.
    """

    def draw(axes):
        for i, (name, (xs, ys)) in enumerate(series.items()):
            means = [float(np.mean(value)) for value in ys]
            if np.ndim(ys[0]):
                spread = [float(np.std(value, ddof=1)) for value in ys]
                axes.errorbar(xs, means, yerr=spread, label=name, capsize=4, **_look(i))
            else:
                look = _look(i) | ({"marker": ""} if len(xs) > 25 else {})
                axes.plot(xs, means, label=name, **look)
        if baseline:
            axes.axhline(baseline[1], color="#555555", linestyle=":", label=baseline[0])
        if log_x:
            axes.set_xscale("log")
            ticks = sorted({value for xs, _ in series.values() for value in xs})
            axes.set_xticks(ticks, [f"{value:,g}" for value in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        if log_y:
            axes.set_yscale("log")
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        if percent and log_y:
            # Per cents hardly span two decades: one label a decade is too few, and all of them too many.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if not log_x:
            whole = all(float(value).is_integer() for xs, _ in series.values() for value in xs)
            axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
        axes.set(xlabel=x, ylabel=y, title=title)
        if len(series) + bool(baseline) > 1:
            axes.figure.legend(loc="outside lower center", ncols=2 if len(series) > 3 else 3, fontsize=10)

    data = {name: list(map(list, xy)) for name, xy in series.items()}
    show = (lambda value: f"{value:.0%}") if percent else (lambda value: f"{value:,.2g}")
    lines = [f"{name}: {_course(xs, ys, show)}" for name, (xs, ys) in series.items()]
    if baseline:
        lines.append(f"{baseline[0]}: {show(baseline[1])}")
    return _picture(7.2, 4.3, alt, data, draw, more=f"By {x}: {'; '.join(lines)}.")


def _course(xs: Sequence[float], ys: Sequence, show: Callable[[float], str]) -> str:
    """A line in words: where it begins and ends, and its highest and lowest point where they look different."""
    points = sorted(zip(xs, (float(np.mean(value)) for value in ys), strict=True))
    ends = [show(points[i][1]) for i in (0, -1)]
    told = [f"from {ends[0]} at {points[0][0]:,g}"]
    for what, (x, y) in (("highest", max(points, key=lambda xy: xy[1])), ("lowest", min(points, key=lambda xy: xy[1]))):
        if show(y) not in ends:
            told.append(f"{what} {show(y)} at {x:,g}")
    return ", ".join([*told, f"to {ends[1]} at {points[-1][0]:,g}"])


def bars(values: Mapping[str, float], *, x: str, title: str, alt: str, log: bool = False, show=human) -> Picture:
    """One horizontal bar a name, its value written beside it."""

    def draw(axes):
        names = list(values)[::-1]
        heights = [values[name] for name in names]
        axes.barh(names, heights, color=COLOURS[0])
        for row, value in enumerate(heights):
            axes.annotate(show(value), (value, row), xytext=(4, 0), textcoords="offset points", va="center")
        if log:
            axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
        axes.set(xlabel=x, title=title)

    return _picture(7.2, 1.2 + 0.42 * len(values), alt, dict(values), draw)


def levels(
    rows: Mapping[str, Sequence[float]], *, x: str, title: str, alt: str, sample: Sequence[float] | None = None
) -> Picture:
    """The numbers that formats can represent, one row of ticks a format; sample: numbers whose histogram is above."""
    edges = np.linspace(min(map(min, rows.values())), max(map(max, rows.values())), 101)
    heights = None if sample is None else np.histogram(sample, edges)[0]

    def draw(axes):
        for row, values in enumerate(rows.values()):
            axes.vlines(values, -row - 0.32, -row + 0.32, color=COLOURS[row % 7], linewidth=1.5)
        top = 0.5
        if heights is not None:
            axes.stairs(0.6 + 1.6 * heights / heights.max(), edges, baseline=0.6, fill=True, color="#bbbbbb")
            top = 2.3
        axes.set_yticks([-row for row in range(len(rows))], list(rows))
        axes.set_ylim(0.5 - len(rows), top)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel=x, title=title)

    data = {name: list(map(float, values)) for name, values in rows.items()}
    data |= {} if heights is None else {"sample": heights.tolist()}
    return _picture(7.2, 1.3 + 0.42 * len(rows) + (0.9 if sample is not None else 0), alt, data, draw)


def memory_bars(
    rows: Mapping[str, Mapping[str, float]], *, title: str, alt: str, limits: Mapping[str, float] | None = None
) -> Picture:
    """Stacked bars of bytes by part, one bar a row; limits: name → bytes, drawn as vertical lines."""
    parts = [
        part
        for part in dict.fromkeys(part for row in rows.values() for part in row)
        if any(row.get(part) for row in rows.values())
    ]
    hatches = ("", "//", "..", "xx", "\\\\", "++")

    def draw(axes):
        names = list(rows)[::-1]
        left = np.zeros(len(names))
        for i, part in enumerate(parts):
            widths = np.array([rows[name].get(part, 0) for name in names]) / 1e6
            look = {"color": COLOURS[i], "hatch": hatches[i], "edgecolor": "white"}
            axes.barh(names, widths, left=left, label=part, **look)
            left += widths
        for row, total in enumerate(left):
            axes.annotate(
                human_bytes(total * 1e6), (total, row), xytext=(4, 0), textcoords="offset points", va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=4,
            )  # fmt: skip
        for name, limit in (limits or {}).items():
            axes.axvline(limit / 1e6, color="#000000", linestyle=":")
            axes.annotate(
                name, (limit / 1e6, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9
            )
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value * 1e6)))
        axes.set_title(title, pad=18 if limits else 6)
        axes.figure.legend(loc="outside lower center", ncols=len(parts) if len(parts) < 5 else 3, fontsize=10)

    return _picture(7.6, 1.7 + 0.5 * len(rows), alt, {name: dict(row) for name, row in rows.items()}, draw)


def tradeoff(
    points: Mapping[str, Mapping[str, float]],
    scores: Mapping[str, Sequence[float]],
    *,
    y: str,
    title: str,
    alt: str,
    baseline: tuple[str, float] | None = None,
) -> Picture:
    """Score against cost, a panel a cost: points[name] = {cost: value}, scores[name] = one value a seed (0..1).

    The score is drawn as mean ± standard deviation over the seeds; every cost on a log axis.
    """
    costs = list(dict.fromkeys(cost for point in points.values() for cost in point))

    def draw(*panels):
        for panel, cost in zip(panels, costs, strict=True):
            for i, (name, point) in enumerate(points.items()):
                mean, spread = np.mean(scores[name]), np.std(scores[name], ddof=1)
                panel.errorbar(
                    point[cost], mean, yerr=spread, label=name, capsize=4, **_look(i) | {"linestyle": "none"}
                )
            if baseline:
                panel.axhline(baseline[1], color="#555555", linestyle=":", label=baseline[0])
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
            show = human_bytes if "memory" in cost else human
            _log_ticks(panel, [point[cost] for point in points.values()], show)
            panel.margins(x=0.12)
            panel.set_xlabel(cost)
        panels[0].set(ylabel=y, title=title)
        handles, labels = panels[0].get_legend_handles_labels()
        panels[0].figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=10)

    data = {name: dict(point) | {"scores": list(scores[name])} for name, point in points.items()}
    return _picture(4 * len(costs), 4.4, alt, data, draw, columns=len(costs))


def tokens(texts: Sequence[str], trained: Sequence[bool], *, title: str, alt: str, columns: int = 84) -> Picture:
    """Tokens one behind the other, each in a box: trained ones dark with a line under them, the others pale.

    Line breaks are shown as ↵, and break the line.
    """
    placed, row, at = [], 0, 0
    for text, on in zip(texts, trained, strict=True):
        shown = text.replace("\n", "↵")
        if at and at + len(shown) > columns:
            row, at = row + 1, 0
        placed.append((shown, on, row, at))
        row, at = (row + text.count("\n"), 0) if "\n" in text else (row, at + len(shown))

    def draw(axes):
        axes.set(xlim=(0, columns), ylim=(-row - 0.6, 0.6))
        axes.set_title(title)
        axes.axis("off")
        for shown, on, line, start in placed:
            colour, face = ("#000000", "#F3CE8A") if on else ("#444444", "#eeeeee")
            place, width = (start + 0.06, -line - 0.36), len(shown) - 0.12
            axes.add_patch(Rectangle(place, width, 0.72, facecolor=face, edgecolor="none"))
            axes.text(start, -line, shown, family="monospace", fontsize=10.5, color=colour, va="center")
            if on:
                axes.plot((place[0], place[0] + width), (place[1], place[1]), color=COLOURS[1], linewidth=1.5)

    return _picture(
        7.6, 0.7 + 0.27 * (row + 1), alt, {"tokens": list(texts), "trained": list(map(bool, trained))}, draw
    )


def confusion(matrix: np.ndarray, labels: Sequence[str], *, title: str, alt: str) -> Picture:
    """A confusion matrix: rows are the truth, columns what was predicted, counts in the cells."""

    def draw(axes):
        shade = axes.imshow(matrix, cmap="Blues", vmin=0).to_rgba
        for (row, column), count in np.ndenumerate(matrix):
            axes.text(column, row, str(count), ha="center", va="center", color=ink(shade(count)))
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels)
        axes.set_yticks(ticks, labels)
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="true", title=title)

    return _picture(4.8, 4.2, alt, {"matrix": matrix.tolist()}, draw)


def maps(panels: Mapping[str, np.ndarray], groups: Sequence[str], *, title: str, alt: str) -> Picture:
    """Points (rows, 2) in the plane, a panel each, coloured by the group of each row; no scales, only nearness."""
    kinds = list(dict.fromkeys(groups))

    def draw(*axes):
        for panel, (name, points) in zip(axes, panels.items(), strict=True):
            for i, kind in enumerate(kinds):
                rows = [row for row, group in enumerate(groups) if group == kind]
                look = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7]}
                panel.scatter(points[rows, 0], points[rows, 1], s=16, alpha=0.7, linewidths=0, label=kind, **look)
            panel.set(xticks=[], yticks=[], xlabel=name)
        axes[0].set_title(title)
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=min(len(kinds), 6), fontsize=10)

    data = {name: np.asarray(points).round(4).tolist() for name, points in panels.items()}
    return _picture(4 * len(panels), 4.4, alt, data, draw, columns=len(panels))


def heatmap(
    values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], x: str, title: str, alt: str
) -> Picture:
    """Shares in 0..1, a cell each, with its per cent written in it."""

    def draw(axes):
        shade = axes.imshow(values, cmap="Blues", vmin=0, aspect="auto").to_rgba
        for (row, column), value in np.ndenumerate(values):
            axes.text(column, row, f"{100 * value:.0f}%", ha="center", va="center", color=ink(shade(value)))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(visible=False)
        axes.set(xlabel=x, title=title)

    return _picture(
        1.6 + 0.7 * len(columns), 1.4 + 0.45 * len(rows), alt, {"values": np.asarray(values).tolist()}, draw
    )


def ranked(
    scores: Mapping[str, Sequence[float]],
    groups: Mapping[str, str],
    *,
    x: str,
    title: str,
    alt: str,
    baseline: tuple[str, float] | None = None,
) -> Picture:
    """Each seed as a dot and their mean as a marker, one row a name, the best on top.

    groups: name → its colour's meaning. scores[name] has one value a seed, in 0..1.
    """
    names = sorted(scores, key=lambda name: np.mean(scores[name]))
    kinds = list(dict.fromkeys(groups.values()))

    # Dots rather than a standard deviation: a single seed that failed is seen as such, and no bar goes below 0%.
    def draw(axes):
        for i, kind in enumerate(kinds):
            rows = [row for row, name in enumerate(names) if groups[name] == kind]
            means = [np.mean(scores[names[row]]) for row in rows]
            look = _look(i) | {"linestyle": "none"}
            axes.plot(means, rows, label=kind, **look)
            for row in rows:
                values = scores[names[row]]
                axes.plot([min(values), max(values)], [row, row], color=look["color"], linewidth=1)
                axes.plot(values, [row] * len(values), ".", color=look["color"], markersize=5)
        if baseline:
            axes.axvline(baseline[1], color="#555555", linestyle=":", label=baseline[0])
        axes.set_yticks(range(len(names)), names)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        axes.grid(axis="y", linestyle=":")
        axes.set(xlabel=x, title=title, ylim=(-0.8, len(names) - 0.2))
        axes.figure.legend(loc="outside lower center", ncols=3, fontsize=10)

    # As low as the type allows: on a slide a high figure would be made small.
    return _picture(7.6, 1.4 + 0.2 * len(names), alt, {name: list(scores[name]) for name in names[::-1]}, draw)


def pareto(
    costs: Mapping[str, float],
    scores: Mapping[str, Sequence[float]],
    groups: Mapping[str, str],
    front: Sequence[str],
    *,
    x: str,
    y: str,
    title: str,
    alt: str,
    show: Callable[[float], str] = human,
) -> Picture:
    """Score (mean ± standard deviation over seeds, 0..1) against one cost on a log axis, and the front drawn through.

    groups: name → its colour's meaning; front: the names that nothing beats, cheapest first, in bold.
    """
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    kinds = list(dict.fromkeys(groups.values()))

    def draw(axes):
        axes.plot([costs[n] for n in front], [means[n] for n in front], color="#888888", linewidth=1.2, zorder=1)
        for i, kind in enumerate(kinds):
            chosen = [name for name in scores if groups[name] == kind]
            axes.errorbar(
                [costs[n] for n in chosen],
                [means[n] for n in chosen],
                yerr=[np.std(scores[n], ddof=1) for n in chosen],
                label=kind,
                capsize=2,
                elinewidth=1,
                **_look(i) | {"linestyle": "none"},
            )
        _log_ticks(axes, list(costs.values()), show)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        axes.margins(x=0.14, y=0.1)
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.figure.legend(loc="outside lower center", ncols=5, fontsize=10)
        _label(axes, {name: (costs[name], means[name]) for name in dict.fromkeys([*front, *scores])}, front)

    data = {name: {"cost": costs[name], "scores": list(scores[name]), "front": name in front} for name in scores}
    return _picture(8.2, 6.4, alt, data, draw)


def family_tree(
    methods, families: Mapping[str, str], untrained: Sequence[str], column: Mapping[str, str], heading: str
) -> Picture:
    """The families of fine-tuning, the registry's methods under each, and a text beside every method.

    untrained: what stands under the first family, which has no methods; column: method name → the text under heading.
    """
    rows = []
    for family in families:
        found = [
            (family, method.title, column.get(name, "")) for name, method in methods.items() if method.family == family
        ]
        rows += found or [(family, title, "") for title in untrained]
    # A little air between families.
    places = [row + 0.6 * list(families).index(family) for row, (family, _, _) in enumerate(rows)]

    def draw(axes):
        axes.axis("off")
        axes.set(xlim=(0, 10), ylim=(places[-1] + 0.7, -1.4))
        for at, head in ((0, "what moves"), (4.7, "method"), (7.6, heading)):
            axes.text(at, -1, head, color="#555555", va="center")
        first = {}
        for y, (family, title, text) in zip(places, rows, strict=True):
            first.setdefault(family, y)
            colour = COLOURS[list(families).index(family)]
            axes.plot([4.1, 4.6], [first[family], y], color=colour, marker="o", markersize=4, linewidth=1.4)
            axes.text(4.7, y, title, va="center")
            axes.text(7.6, y, text, va="center")
        for family, y in first.items():
            axes.text(0, y, family, va="center", weight="bold")
            axes.text(0, y + 0.75, families[family], va="center", fontsize=9, color="#444444")

    alt = f"{len(rows)} ways to fine-tune in {len(families)} families, and for each: {heading}."
    told = [
        f"{family}: " + ", ".join(f"{title} {text}".strip() for own, title, text in rows if own == family)
        for family in families
    ]
    return _picture(10, 0.6 + 0.22 * places[-1], alt, {"rows": rows}, draw, more="; ".join(told) + ".")

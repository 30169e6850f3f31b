"""Charts of the report, as SVG in data URIs: an image cannot run scripts, and its parts' names cannot clash with the page's."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]
TRAIN_COLOUR, EVAL_COLOUR, INK, GRID = "#2f6fde", "#d9730d", "#57606a", "#e4e7eb"
MARKED_POINTS = 40
"""Up to this many points of a curve are marked each; more would only thicken the line."""


def loss_curve(train: Points, validation: Points) -> str:
    """Return the training and validation loss over steps as a data URI."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Texts stay texts, so that they look like the page's own.
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 11, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(13, 4), layout="constrained")
        axes = figure.add_subplot()
        for points, label, colour, line in ((train, "training", TRAIN_COLOUR, "-"), (validation, "validation", EVAL_COLOUR, "--")):
            if points:
                mark = "o" if len(points) <= MARKED_POINTS else ""
                steps, losses = zip(*points, strict=True)
                axes.plot(steps, losses, line, marker=mark, markersize=4, linewidth=1.8, color=colour, label=label)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel("loss", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, labelcolor=INK)
        return _data_uri(figure)


def _data_uri(figure: object) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})  # type: ignore[attr-defined]
    svg = re.sub(r"<metadata>.*?</metadata>", "", content.getvalue().decode(), flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans'")
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()

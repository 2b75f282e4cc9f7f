"""The results of the demo: one table, one picture, and a few answers side by side.

All three are made from one plain `Result`, which can be saved as JSON, without access to the models. The colours
are Okabe and Ito's and the cividis map, which colour-blind readers can distinguish.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

FEDERATION = "federation"
POOLED = "pooled data"

_BLUE, _GREY, _GREEN = "#0072B2", "#9A9A9A", "#009E73"
_LIGHT = 0.55


class ModelResult(TypedDict):
    """One trained model: accuracies are shares between 0 and 1, `bytes` is the data sent by the hospitals."""

    name: str
    accuracy: float
    per_hospital: dict[str, float]
    bytes: int
    seconds: float


class AnswerResult(TypedDict):
    """One exam question, the right answer, and the answer of each model by its name."""

    question: str
    expected: str
    answers: dict[str, str]


class Result(TypedDict):
    """Everything the demo measured; every model has the same hospitals in `per_hospital`.

    `chance` is the accuracy of drawing one of the exam's possible answers at random.
    """

    chance: float
    models: list[ModelResult]
    answers: list[AnswerResult]


def best_alone(result: Result) -> str | None:
    """The name of the most accurate model that is neither the federation nor the pooled one; None if there is none."""
    alone = [model for model in result["models"] if model["name"] not in (FEDERATION, POOLED)]
    return max(alone, key=lambda model: model["accuracy"])["name"] if alone else None


def table(result: Result) -> Table:
    """The models in rows: accuracy over all questions and over each hospital's, bytes that travelled, time."""
    from rich.table import Table

    from weft.runs.text import human_bytes, human_duration

    models = result["models"]
    out = Table(title="Accuracy on the exam, by whose questions", title_justify="left")
    out.add_column("trained by", no_wrap=True)
    out.add_column("all", justify="right", style="bold")
    for hospital in models[0]["per_hospital"]:
        out.add_column(f"{hospital.removeprefix('hospital ')}'s", justify="right")
    out.add_column("travelled", justify="right")
    out.add_column("time", justify="right")
    for model in models:
        shares = [model["accuracy"], *model["per_hospital"].values()]
        cells = [_percent(share) for share in shares]
        style = "green" if model["name"] == FEDERATION else None
        out.add_row(model["name"], *cells, human_bytes(model["bytes"]), human_duration(model["seconds"]), style=style)
    return out


def answers_table(result: Result) -> Table:
    """The questions in rows: the right answer, then the best hospital's alone, the federation's and the pooled model's.

    A wrong answer is marked with a cross, so that the table also reads without colours.
    """
    from rich.markup import escape
    from rich.table import Table

    names = [name for name in (best_alone(result), FEDERATION, POOLED) if name is not None]
    out = Table(title="Three answers", title_justify="left")
    for heading in ("question", "right answer", *names):
        out.add_column(heading)
    for row in result["answers"]:
        answers = [row["answers"].get(name, "") for name in names]
        cells = [
            f"[green]✓[/] {escape(text)}" if text == row["expected"] else f"[red]✗[/] {escape(text)}"
            for text in answers
        ]
        out.add_row(escape(row["question"]), escape(row["expected"]), *cells)
    return out


def draw(path: Path, result: Result) -> None:
    """Save a PNG: on the left each model's accuracy on all questions, on the right its accuracy by hospital."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 1.7 + 0.5 * len(result["models"])
    figure = Figure(figsize=(10, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    bars, grid = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_bars(bars, result["models"], result["chance"])
    _draw_grid(grid, result["models"])
    figure.suptitle("Together the hospitals answer everybody's questions", x=0.01, ha="left", weight="bold", size=14)
    figure.savefig(path)


def _draw_bars(axes: Axes, models: list[ModelResult], chance: float) -> None:
    shares = [model["accuracy"] for model in models]
    colours = [{FEDERATION: _BLUE, POOLED: _GREEN}.get(model["name"], _GREY) for model in models]
    axes.barh(range(len(models)), shares, color=colours, height=0.68)
    for row, share in enumerate(shares):
        inside = share > 0.15
        axes.text(
            share - 0.012 if inside else share + 0.012,
            row,
            _percent(share),
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            weight="bold",
        )
    axes.axvline(chance, color="black", linestyle=(0, (4, 3)), linewidth=1.2)
    axes.text(chance + 0.012, len(models) - 0.46, f"guessing: {_percent(chance)}", va="center", size=9)
    axes.set_yticks(range(len(models)), [model["name"] for model in models], size=11)
    axes.set_ylim(*_rows(models))
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"], color="#555555")
    axes.set_title("accuracy on everybody's questions", loc="left", size=11, color="#333333")
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_grid(axes: Axes, models: list[ModelResult]) -> None:
    hospitals = list(models[0]["per_hospital"])
    shares = [[model["per_hospital"][hospital] for hospital in hospitals] for model in models]
    axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            colour = "black" if share > _LIGHT else "white"
            axes.text(column, row, _percent(share), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(hospitals)), hospitals)
    axes.set_yticks([])
    axes.set_ylim(*_rows(models))
    axes.set_xticks([edge + 0.5 for edge in range(len(hospitals) - 1)], minor=True)
    axes.set_yticks([edge + 0.5 for edge in range(len(models) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("... and on whose", loc="left", size=11, color="#333333")


def _rows(models: list[ModelResult]) -> tuple[float, float]:
    """The lower and the upper edge of both drawings: a row for each model, and room for a line of text below."""
    return len(models) - 0.25, -0.5


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

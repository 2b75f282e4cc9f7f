"""The picture of `frontier.py`: loss above central training against bytes, one line for each codec and optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frontier import best_central

AIMS = ((100, 0.03), (20, 0.015))
"""Times fewer bytes than data parallel, and the loss that this may cost, with four clients."""


def points(rows: list[dict[str, Any]], size: str, clients: int, seed: int = 1) -> dict[str, list[tuple[float, float]]]:
    """Return (times fewer bytes than data parallel, loss above the best central one) of DiLoCo's arms.

    By codec, optimizer and half-life; of arms that differ in the outer step or the learning rate alone, the best.
    """
    central = best_central(rows)
    best: dict[tuple[str, int], tuple[float, float]] = {}
    for row in rows:
        base = central.get((row["size"], row["steps"], 0, row["seed"]))
        found = tuple(row.get(name, 0) for name in ("size", "clients", "seed", "split", "rows"))
        wanted = found == (size, clients, seed, "iid", 0)
        if not wanted or base is None or not row["bytes"] or row["algorithm"] not in ("diloco", "fedavg"):
            continue
        name = f"{row['codec']}, {row['optimizer']}{', longer half-life' * (row.get('half_life', 1) > 1)}"
        key = name, row["inner"]
        point = row["data_parallel_bytes"] / row["bytes"], row["loss"] / base - 1
        best[key] = min(best.get(key, point), point, key=lambda point: point[1])
    lines: dict[str, list[tuple[float, float]]] = {}
    for (name, _), point in sorted(best.items()):
        lines.setdefault(name, []).append(point)
    return {name: sorted(found) for name, found in lines.items()}


def draw(rows: list[dict[str, Any]], path: Path, size: str = "4m") -> None:
    """Write the picture, one panel for each number of clients."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["loss"] is not None]
    panels = {clients: points(rows, size, clients) for clients in (1, 2, 4, 8)}
    panels = {clients: lines for clients, lines in panels.items() if lines} or {4: {}}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.2), sharey=True, squeeze=False)
    names = sorted({name for lines in panels.values() for name in lines})
    colours = {name: f"C{number}" for number, name in enumerate(names)}
    for axis, (clients, lines) in zip(axes[0], panels.items(), strict=True):
        for name, found in lines.items():
            axis.plot([x for x, _ in found], [100 * y for _, y in found], marker="o", color=colours[name])
        if clients == 4:
            for fewer, more in AIMS:
                axis.plot([fewer], [100 * more], marker="*", markersize=12, color="black", linestyle="none")
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_title(f"{clients} client{'s' if clients > 1 else ''}")
        axis.set_xlabel("times fewer bytes than data parallel")
    axes[0][0].set_ylabel("held-out loss above central, %")
    # Below the panels, where it covers no point.
    marks = [plt.Line2D([], [], marker="o", color=colours[name], label=name) for name in names]
    marks.append(plt.Line2D([], [], marker="*", color="black", linestyle="none", label="aims"))
    figure.legend(handles=marks, loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.06 + 0.05 * (len(marks) // 4), 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)

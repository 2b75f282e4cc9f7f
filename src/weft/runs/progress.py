"""What a person sees while a run goes on: one live line. Knows nothing of files or trackers.

On a terminal and in a notebook the line is drawn anew with every round. Where standard output goes elsewhere, every
round is a line of standard error, so that a log has them and what is printed at the end can still be read by programs.
Silent when asked to be; with `as_json`, one JSON object a line for programs. Warnings always go to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

from weft.core.declarations import TRAIN_LOSS, Metric, scores, training
from weft.json_types import JsonObject
from weft.runs.metrics import to_line
from weft.runs.text import human_bytes, human_duration, human_number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

PAUSE = 30.0
"""Seconds between two lines of a log that say how far the tokenizing is."""


class Progress:
    """Shows the rounds of a run as they are done.

    Records are those of metrics.jsonl and timing.jsonl, merged; a value that is missing or None is not shown.
    """

    def __init__(self, rounds: int, *, quiet: bool, as_json: bool, console: Console | None = None) -> None:
        self._rounds = rounds
        self._as_json = as_json
        self._notes: set[str] = set()
        self._start_time = time.monotonic()
        self._rounds_done = 0
        self._console = None if quiet or as_json else _terminal(console)
        self._page = None if quiet or as_json or self._console else _notebook()
        self._writes_log = not (quiet or as_json or self._console or self._page)
        self._last_line_time = self._start_time
        self._live: Live | None = None

    def tokenizing(self, source: str, read: int, size: int, tokens: int) -> None:
        """Show how far a text is tokenized; `size` 0: not known."""
        now = time.monotonic()
        if self._writes_log and now - self._last_line_time < PAUSE:
            return
        self._last_line_time = now
        if self._shows:
            seconds = time.monotonic() - self._start_time
            parts = [f"{min(read / size, 1):.0%} of {human_bytes(size)}"] if size else []
            parts += [f"{human_number(tokens)} tokens", f"{human_number(tokens / max(seconds, 1e-3))} tokens/s"]
            self._update(_join(f"tokenizing {source}", parts))

    def split(self, split: JsonObject) -> None:
        """Show how the rows are shared out."""
        if self._as_json:
            self._emit("split", {"clients": len(split["clients"]), "skew": split["skew"]})
        elif self._console is not None or self._page is not None:
            self._print(split_line(split))
        elif split["strategy"] not in ("iid", "clients"):
            self.note(split_line(split))

    def round(self, record: JsonObject) -> None:
        """Show a finished round."""
        self._rounds_done += 1
        if self._as_json:
            self._emit("round", record)
        elif self._shows:
            self._update(self._round_line(record))

    def evaluation(self, record: JsonObject) -> None:
        """Show an evaluation; its line stays."""
        if self._as_json:
            self._emit("eval", record)
        elif self._shows:
            head = f"round {record['round']}/{self._rounds}"
            self._print(_join(f"{head} evaluation", _metric_texts(record, scores())))
            if apart := record.get("left_out"):
                self._print(_join(f"{head} left out", _metric_texts(apart, scores())))

    def tasks(self, record: JsonObject, texts: list[str]) -> None:
        """Show the scores of evaluation tasks, which are also given as texts; its line stays."""
        if self._as_json:
            self._emit("tasks", record)
        elif self._shows:
            self._print(_join(f"round {record['round']}/{self._rounds} tasks", texts))

    def note(self, text: str) -> None:
        """Warn on standard error, of each thing once."""
        if text not in self._notes:
            self._notes.add(text)
            self._pause()
            print(f"weft: {text}", file=sys.stderr, flush=True)

    def print_data_summary(self, text: str) -> None:
        """Show the summary of the data."""
        if self._shows:
            self._print(text)

    def finish(self, summary: JsonObject) -> None:
        """Show the outcome of the run."""
        if self._as_json:
            self._emit("done", summary)
        elif self._shows:
            evaluation = _metric_texts(summary.get("eval") or {}, scores(), TRAIN_LOSS)
            parts = _metric_texts(summary, [TRAIN_LOSS]) + evaluation
            traffic = (summary.get("bytes_up") or 0) + (summary.get("bytes_down") or 0)
            rounds = summary.get("rounds", self._rounds)
            head = f"{rounds} round{'s' * (rounds != 1)} in {human_duration(summary.get('seconds') or 0)}"
            self._print(_join(head, [*parts, f"{human_bytes(traffic)} sent"]))

    @property
    def _shows(self) -> bool:
        return self._console is not None or self._page is not None or self._writes_log

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pause()

    def _round_line(self, record: JsonObject) -> str:
        clients = len(record.get("clients") or [])
        parts = [f"{clients} client{'' if clients == 1 else 's'}", *_metric_texts(record, training())]
        if (error := record.get("product_error")) is not None:
            parts.append(f"product error {error:.2g}")
        if record.get("failures"):
            parts.append(f"{len(record['failures'])} dropped")
        if (speed := record.get("tokens_per_second")) is not None:
            parts.append(f"{human_number(speed)} tokens/s")
        parts.append(f"{human_bytes((record.get('bytes_up') or 0) + (record.get('bytes_down') or 0))} sent")
        # The mean over the rounds of this process: those before a resume say nothing of its speed.
        remaining = (time.monotonic() - self._start_time) / self._rounds_done * max(self._rounds - record["round"], 0)
        return _join(f"round {record['round']}/{self._rounds}", [*parts, f"{human_duration(remaining)} left"])

    def _emit(self, event: str, record: JsonObject) -> None:
        print(to_line({"event": event} | record), flush=True)

    def _update(self, line: str) -> None:
        if self._page is not None:
            self._page.draw(line)
        elif self._console is None:
            self._print(line)
        else:
            self._draw(line)

    def _draw(self, line: str) -> None:
        from rich.live import Live
        from rich.text import Text

        text = Text(line)
        if self._live is None:
            # Drawn only when something changes: no thread of its own takes time from the training.
            self._live = Live(text, console=self._console, auto_refresh=False, transient=True, redirect_stderr=False)
            self._live.start(refresh=True)
        else:
            self._live.update(text, refresh=True)

    def _print(self, line: str) -> None:
        self._pause()
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stdout if self._page is not None else sys.stderr, flush=True)

    def _pause(self) -> None:
        """Take the live line away; the next round draws it again."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._page is not None:
            self._page.clear()


class _Page:
    """One line in the output of a notebook's cell, which is drawn anew."""

    def __init__(self, display: Any) -> None:
        """Take IPython's `display`."""
        self._display = display
        self._handle: Any = None

    def draw(self, line: str) -> None:
        """Show a line in place of the one before."""
        content = {"text/plain": line}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def clear(self) -> None:
        """Take the line away; the next is drawn below what was printed since."""
        if self._handle is not None:
            self._handle.update({"text/plain": ""}, raw=True)
            self._handle = None


def split_line(split: JsonObject) -> str:
    """Return in one line what the clients have, and how unlike they are."""
    sizes, skew = [one["rows"] for one in split["clients"].values()], split["skew"]
    labels = f"  labels JS {skew['label_js']:.3f} (max {skew['label_js_max']:.3f})" if "label_js" in skew else ""
    return (
        f"split {split['strategy']}  {len(sizes)} clients, {min(sizes)} to {max(sizes)} rows each  sizes Gini "
        f"{skew['size_gini']:.3f}{labels}  lengths KS {skew['length_ks']:.3f} (max {skew['length_ks_max']:.3f})"
    )


def _terminal(console: Console | None) -> Console | None:
    """Return a console if there is a person before it."""
    if console is None:
        if not sys.stdout.isatty():
            return None
        from rich.console import Console

        console = Console()
    return console if console.is_terminal else None


def _notebook() -> _Page | None:
    """Return where a notebook shows a line, if this process is one's kernel."""
    # IPython is looked up, not imported: in a kernel it is loaded already, elsewhere the import would take long.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not hasattr(shell, "kernel"):
        return None
    return _Page(import_module("IPython.display").display)


def _join(head: str, parts: list[str]) -> str:
    return "  ".join([head, *parts])


def _metric_texts(record: JsonObject, metrics: Iterable[Metric], beside: Metric | None = None) -> list[str]:
    """Return what a record holds of metrics, of those that are not for the report alone.

    A label that is that of the metric beside them on the line says that it is of an evaluation.
    """
    selected = [metric for metric in metrics if metric.shown != "report" and record.get(metric.name) is not None]
    same = beside.line_label if beside is not None else None
    return [("eval " if one.line_label == same else "") + one.on_line(record[one.name]) for one in selected]

"""Experiment trackers (TensorBoard, W&B, MLflow, trackio), driven through accelerate.

A tracker only watches: one that fails while the run goes on is let go with a warning, the run is not. Devices,
precision and data are none of its business.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from weft.errors import ConfigError, MissingExtra, warn
from weft.json_types import JsonObject
from weft.registry import nearest

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
PROJECT = "weft"


def is_installed(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def resolve(names: list[str], installed: Callable[[str], bool] = is_installed) -> list[str]:
    """Return the trackers that are meant: "all" stands for those installed, "none" for nothing.

    Raises:
        ConfigError: an unknown name.
        MissingExtra: a tracker that is named is not installed.
    """
    chosen: list[str] = []
    for name in names:
        if name == "all":
            chosen += [tracker for tracker in TRACKERS if installed(tracker)]
        elif name in TRACKERS:
            if not installed(name):
                raise MissingExtra(name, "trackers", f"The tracker '{name}'")
            chosen.append(name)
        elif name != "none":
            known = [*TRACKERS, "all", "none"]
            guess = nearest(name, known)
            meant = f" Did you mean '{guess}'?" if guess else ""
            raise ConfigError(f"There is no tracker named '{name}'.{meant} Known: {', '.join(known)}.")
    return list(dict.fromkeys(chosen))


class Trackers:
    """The trackers of one run. Local ones write into `run_dir`/trackers.

    Raises:
        ConfigError: an unknown tracker, one that is not installed (MissingExtra), or one that cannot start.
    """

    def __init__(
        self,
        names: list[str],
        run_dir: Path,
        config: JsonObject,
        note: Callable[[str], None] = warn,
    ) -> None:
        self._note = note
        self._running: JsonObject = {}
        for name in resolve(names):
            try:
                self._running[name] = _start(name, run_dir, config)
            except Exception as error:
                self.close()
                raise ConfigError(
                    f"The tracker '{name}' cannot start ({error}): set it up as its own manual says, "
                    f"or leave it out of --report_to."
                ) from error

    def log(self, values: JsonObject, step: int) -> None:
        """Send the finite numbers among `values` to every tracker, as those of round `step`."""
        numbers = {key: value for key, value in values.items() if _is_number(value)}
        for name in list(self._running):
            self._attempt(name, lambda tracker: tracker.log(numbers, step=step))

    def close(self) -> None:
        """Finish every tracker."""
        for name in list(self._running):
            self._attempt(name, lambda tracker: tracker.finish())
            self._running.pop(name, None)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, name: str, action: Callable[[Any], object]) -> None:
        try:
            action(self._running[name])
        except Exception as error:
            del self._running[name]
            self._note(f"The tracker '{name}' failed ({error}) and is left out from here on; the run goes on.")


def _start(name: str, run_dir: Path, config: JsonObject) -> Any:
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's own loggers refuse to work before it exists
    directory = run_dir / "trackers"
    directory.mkdir(parents=True, exist_ok=True)
    title = run_dir.resolve().name
    tracker: Any
    match name:
        case "tensorboard":
            tracker = tracking.TensorBoardTracker("tensorboard", directory)
        case "wandb":
            tracker = tracking.WandBTracker(PROJECT, name=title, dir=str(directory))
        case "mlflow":
            tracker = tracking.MLflowTracker(PROJECT, run_name=title)
        case _:
            tracker = tracking.TrackioTracker(PROJECT, name=title)
    tracker.start()
    simple = {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()
    }
    tracker.store_init_configuration(simple)
    return tracker


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

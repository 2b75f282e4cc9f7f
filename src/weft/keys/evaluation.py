"""Keys of what is measured while a run goes on: evaluation tasks, and which round counts as the best."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from weft.keys.effects import LOCAL_MODEL, NOT_SPREAD, SERVERS_OWN, WHOLE_SHARED, Effect, flag


class EvaluationKeys(BaseModel):
    """Evaluation tasks of the server's model, and the choice of a round."""

    eval_tasks: list[str] = Field(
        [],
        description="evaluation tasks, suites or task files that the server's model is put to: before the first "
        "round, every eval_every rounds and after the last",
    )
    leave_out: list[str] = Field(
        [],
        description="clients that take no part in the training; the shared model is evaluated on their held-out rows, "
        "apart from the others",
    )
    eval_limit: int | None = Field(None, ge=1, description="at most so many rows of an evaluation task")
    task_data: list[str] = Field([], description="folders with the data of evaluation tasks")
    include_path: list[str] = Field([], description="folders with evaluation tasks of your own")
    num_fewshot: int = Field(0, ge=0, description="worked examples before each question of an evaluation task")
    apply_chat_template: bool = Field(
        False, description="ask evaluation tasks in turns of the model's own chat template"
    )
    best_metric: str | None = Field(
        None,
        description="keep the checkpoint that is best by this metric, and write it to the folder 'best': a metric of "
        "held-out rows, such as loss, or TASK or TASK/METRIC of eval_tasks",
    )
    early_stopping_rounds: int = Field(
        0, ge=0, description="end the run when best_metric has not improved for so many rounds; 0: never"
    )

    @field_validator("eval_tasks", "leave_out")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        """Keep a name that was given twice once."""
        return list(dict.fromkeys(names))


TASKS = flag("eval_tasks", "tfns")
WORKS: dict[str, Effect] = {
    "eval_tasks": LOCAL_MODEL + NOT_SPREAD,
    "leave_out": WHOLE_SHARED,
    "eval_limit": TASKS,
    "task_data": TASKS + SERVERS_OWN,
    "include_path": TASKS + SERVERS_OWN,
    "num_fewshot": TASKS,
    "apply_chat_template": TASKS,
    "best_metric": (),
    "early_stopping_rounds": flag("best_metric", "loss"),
}
"""When each key has an effect."""

"""Keys of what is measured while a run goes on: evaluation tasks, and which round counts as the best."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from weft.keys.effects import LOCAL_MODEL, NOT_SPREAD, SERVERS_OWN, WHOLE_SHARED, Condition, Effect, flag


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
    forgotten: list[str] = Field(
        [],
        description="clients whose rows are not used any more, as `weft forget` writes it: they keep their numbers, "
        "and the run is that in which they never answered",
    )
    evaluated_run: str | None = Field(
        None,
        description="of a run of sites with num_rounds 0: the name of a run at their server, whose shared model is "
        "evaluated",
    )
    contamination: list[str] = Field(
        [],
        description="evaluation tasks or suites: every client counts how many of their items share a long n-gram with "
        "its training rows, before the first round",
    )
    data_statistics: bool = Field(
        False,
        description="every client tells how long its rows are, in which languages, and how often they have each of "
        "choices, before the first round",
    )
    statistics_noise: float = Field(
        0.0,
        ge=0,
        description="scale b of the discrete Laplace noise that a client adds to each count of data_statistics",
    )
    eval_limit: int | None = Field(None, ge=1, description="at most so many rows of an evaluation task")
    eval_limit_seed: int | None = Field(
        None, description="draws the rows of eval_limit at random (default: the first rows)"
    )
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

    @field_validator("eval_tasks", "leave_out", "forgotten")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        """Keep a name that was given twice once."""
        return list(dict.fromkeys(names))


TASKS = flag("eval_tasks", "tfns")
TASK_FILES = (
    Condition(
        lambda config: bool(config.eval_tasks or config.contamination),
        "it works with eval_tasks and contamination alone",
        "add --eval_tasks tfns",
    ),
)
SIMULATED = (
    Condition(
        lambda config: config.runtime != "nvflare",
        "a run of sites forgets a site by another run, without its name in --sites",
    ),
)
LIMITED = Condition(lambda config: config.eval_limit is not None, "eval_limit is not given", "add --eval_limit 100")
OF_SITES = (
    Condition(
        lambda config: config.runtime == "nvflare",
        "it names a run at the server of sites, and a run here is evaluated by `weft evaluate RUN --federated`",
    ),
)
WORKS: dict[str, Effect] = {
    "eval_tasks": LOCAL_MODEL + NOT_SPREAD,
    "leave_out": WHOLE_SHARED,
    "forgotten": SIMULATED,
    "evaluated_run": OF_SITES,
    "eval_limit": TASKS,
    "eval_limit_seed": (*TASKS, LIMITED),
    "contamination": (),
    "data_statistics": (),
    "statistics_noise": flag("data_statistics", "true"),
    "task_data": TASK_FILES + SERVERS_OWN,
    "include_path": TASK_FILES + SERVERS_OWN,
    "num_fewshot": TASKS,
    "apply_chat_template": TASKS,
    "best_metric": (),
    "early_stopping_rounds": flag("best_metric", "loss"),
}
"""When each key has an effect."""

"""Scorer of programs that the model writes: they run in a sandbox, and a sample passes if its tests do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from weft.json_types import JsonObject
from weft.tasks import code, statistics
from weft.tasks.prompts import Prompt
from weft.tasks.requests import Item, Record, Reply, Texts, Writing
from weft.tasks.sandbox import Isolation, Outcome, run
from weft.tasks.scorer import Measures, Scorer


class Program(Scorer):
    """pass@k of programs in Python."""

    main: ClassVar[str] = "pass_at_1"
    needs: ClassVar[str] = "code"

    rows: Literal["human_eval", "mbpp", "fix", "synthesise", "explain"]
    """What the rows are of: HumanEval, MBPP, or one of HumanEvalPack's three ways to ask."""
    samples: int = 1
    temperature: float = 0.0
    k: tuple[int, ...] = (1,)
    until: tuple[str, ...] = ()
    """Ends of a program by a model that continues texts; in a chat there are none."""
    max_tokens: int = 512

    def answer_text(self, row: JsonObject) -> str:
        """Return the reference program, as it stands in a worked example."""
        return f"{row['code']}\n[DONE]" if self.rows == "mbpp" else str(row["canonical_solution"])

    def request(self, item: Item) -> Writing:
        """Ask for programs; of `explain`, for a description first."""
        return Writing(item.prompt, self.until, self.max_tokens, self.temperature, self.samples)

    def follow_up(self, item: Item, reply: Reply) -> Writing | None:
        """Return, of `explain`, the request for a program by the description alone."""
        if self.rows != "explain":
            return None
        assert isinstance(reply, Texts)
        question = code.pack_from_words(item.row, reply.first)
        return Writing(Prompt(question, system=item.prompt.system), (), self.max_tokens)

    def programs(self, item: Item, reply: Reply) -> list[str]:
        """Return the programs of all samples, with their tests."""
        assert isinstance(reply, Texts)
        row, answers = item.row, [sample[0] for sample in reply.samples]
        if self.rows == "mbpp":
            return [code.mbpp(row, code.code_of(code.cut(answer, ("[DONE]",)))) for answer in answers]
        if self.rows == "human_eval":
            build, prompt = code.human_eval, row["prompt"]
        else:
            build, prompt = code.human_eval_pack, row["declaration"]
        return [build(row, code.function_of(answer, prompt, row["entry_point"])) for answer in answers]

    def judged(self, items: Sequence[Item], replies: Sequence[Reply], isolation: Isolation) -> list[list[Outcome]]:
        """Run the programs of items in a sandbox, and return how each sample of each item ended."""
        programs = [self.programs(item, reply) for item, reply in zip(items, replies, strict=True)]
        outcomes = iter(run([text for own in programs for text in own], isolation))
        return [[next(outcomes) for _ in own] for own in programs]

    def scores_of(self, outcomes: Sequence[Outcome]) -> Mapping[str, float]:
        """Return the numbers of one item: pass@k, and how many samples ran out of time or memory."""
        passed = sum(outcome.passed for outcome in outcomes)
        result = {f"pass_at_{k}": code.pass_at_k(len(outcomes), passed, k) for k in self.k if k <= len(outcomes)}
        stopped = sum(outcome.reason in ("timeout", "memory") for outcome in outcomes)
        return result | {"stopped": stopped / len(outcomes)}

    def perfect(self, item: Item) -> Texts:
        """Return the reference program."""
        return Texts(((self.answer_text(item.row),),) * self.samples)

    def measures(self, records: Sequence[Record]) -> Measures:
        """Return the means; the samples that were stopped without an error of their own."""
        result = super().measures(records)
        stopped = result.pop("stopped", None)
        return result | ({"stopped": statistics.Measure(stopped.value, None, len(records))} if stopped else {})

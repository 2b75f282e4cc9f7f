"""What gets out of prompts: a system's turn, an instruction that a run found, and the vectors of a learnt prompt."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import weft
from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit, Settings
from weft.audits.soft_prompt import nearest, own_words
from weft.audits.subsequence import common, recall_of, rouge_l
from weft.audits.system_prompt import SystemPrompt
from weft.cli import main


class Talker(Scene):
    """A scene whose model says what it is told to say."""

    def __init__(self, own: str = "", *, says=lambda prompt: prompt, room: int = 10_000):
        self.settings, self.says, self.room = Settings(), says, room
        self.run = SimpleNamespace(instruction=lambda client: own)
        self.own = own

    def asking(self, text, system="", *, own=True):
        return f"{self.own * own}\n{system}\n{text}"

    def fitting(self, prompt, tokens):
        return prompt[-self.room :]

    def text(self, ids):
        return ids

    def write(self, prompts, tokens, *, temperature=0.0):
        return [self.says(prompt) for prompt in prompts]


def test_a_model_that_repeats_its_prompt_gives_everything_away():
    found = SystemPrompt().findings(Talker("Answer as a careful doctor would.")).numbers
    for kind in ("direct question", "jailbreak", "moral pressure", "repeated word"):
        assert found["by_kind"][kind]["codes"]["value"] == 1.0
        assert found["by_kind"][kind]["words"] == 1.0
        assert found["by_kind"][kind]["control"] < 0.5
        assert found["own"][kind]["words"] == 1.0
        assert found["own"][kind]["control"] < 0.5


def test_a_model_that_says_nothing_of_it_gives_nothing_away():
    found = SystemPrompt().findings(Talker(says=lambda prompt: "I cannot say.")).numbers
    assert all(kind["codes"]["value"] == 0 and kind["words"] < 0.2 for kind in found["by_kind"].values())
    assert "own" not in found


def test_questions_that_push_the_prompt_out_of_the_context_are_no_attack():
    found = SystemPrompt().findings(Talker(room=160))
    assert set(found.numbers["by_kind"]) == {"direct question"}
    assert all(kind["codes"]["value"] == 1 for kind in found.numbers["by_kind"].values())
    assert any("questions of the kind jailbreak are left out" in note for note in found.notes)
    with pytest.raises(CannotAudit, match="No question leaves room"):
        SystemPrompt().findings(Talker(room=80))


def test_codes_that_come_without_the_prompt_are_no_leak():
    every = " ".join(f"{code:06}" for code in Talker().chance("system prompt").integers(0, 10**6, 6))
    with pytest.raises(CannotAudit, match="without the prompt the model writes 6 of 6 codes"):
        SystemPrompt().findings(Talker(says=lambda prompt: every))


def test_the_longest_common_subsequence_by_hand():
    assert common("abcbdab", "bdcaba") == 4
    assert recall_of("abcd", "axcxd") == 0.75
    assert rouge_l("abcd", "axcxd") == pytest.approx(6 / 9)
    assert recall_of("", "a") == rouge_l("", "a") == common("a", "") == 0


def audit(run, *tests: str) -> dict:
    assert main(["audit", str(run.path), "--quiet", "--tests", *tests]) == 0
    return json.loads((run.path / "audit.json").read_text())["audits"]


def test_the_text_that_a_prompt_began_from_is_read_in_its_vectors(prompted):
    own = {"prompt_method": "soft", "num_virtual_tokens": 8, "prompt_init_text": "the careful assistant of the ward"}
    run = weft.train(prompted | own | {"num_rounds": 1, "learning_rate": 1e-3})
    found = audit(run, "soft_prompt", "system_prompt")
    prompt = found["soft_prompt"]["numbers"]
    assert prompt["vectors"] == 8
    assert prompt["start_read"]["value"] == 1.0
    assert prompt["start_control"]["high"] < 0.05
    assert prompt["words"]["low"] <= prompt["before"]["value"] <= prompt["words"]["high"]
    assert all(kind["codes"]["value"] == 0 for kind in found["system_prompt"]["numbers"]["by_kind"].values())
    encoded = {"prompt_method": "p_tuning", "num_rounds": 1, "max_steps": 1}
    run = weft.train(prompted | encoded, overwrite=True)
    # What p-tuning begins from is read by an encoder, and is of another space than the vectors.
    assert "before" not in audit(run, "soft_prompt")["soft_prompt"]["numbers"]


def test_samples_of_a_prompt_differ_whatever_the_batch_size(keys):
    run = weft.train(keys | {"num_rounds": 1, "max_steps": 1, "eval_every": 0})
    scene = Scene(run, Settings(batch_size=1))
    prompt = scene.asking("Red?")
    assert len(set(scene.write([prompt] * 3, 8, temperature=1.0))) == 3
    assert scene.cut == 0
    scene.write([scene.plain("red " * 400)], 8)
    assert scene.cut == 1


def test_a_run_of_weights_has_no_vectors_to_read(keys, capsys):
    run = weft.train(keys | {"num_rounds": 1, "max_steps": 1})
    assert main(["audit", str(run.path), "--tests", "soft_prompt"]) == 2
    assert "--prompt_method soft" in capsys.readouterr().err


def test_vectors_are_read_by_their_direction():
    table = torch.eye(5)
    assert nearest(torch.tensor([[0.0, 3.0, 1.0, 0.0, 0.0], [-9.0, 0.0, 0.0, 0.0, 0.1]]), table) == [1, 4]
    rows = [np.array([7, 7, number]) for number in range(3)]
    assert own_words(rows) == {0, 1, 2}


def test_the_instruction_of_a_run_is_asked_for_too(keys):
    own = {"use_peft": False, "prompt_method": "text", "fed_alg": "fedtext", "prompt_init_text": "Name the colour."}
    own |= {"prompt_pool": 2, "prompt_length": 40, "num_rounds": 1, "max_steps": 1, "eval_every": 0}
    run = weft.train({key: value for key, value in keys.items() if key != "learning_rate"} | own)
    assert run.instruction() == "Name the colour."
    found = audit(run, "system_prompt")["system_prompt"]["numbers"]["own"]
    assert set(found) == {"direct question", "jailbreak", "moral pressure", "repeated word"}
    assert all(kind["words"] < 1 for kind in found.values())  # a random model repeats nothing

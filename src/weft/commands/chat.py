"""`weft chat RUN`: talk with what a run trained, through the template that it was trained with."""

from __future__ import annotations

import sys
from typing import Any

from weft.arguments import Parser
from weft.errors import ConfigError
from weft.launch.run import Run, add_use_flags, open_to_use
from weft.models.noise import quiet_libraries


def run(argv: list[str]) -> int:
    """Answer one prompt, or talk until the end of input."""
    parser = Parser(prog="weft chat", description="Talk with a trained model.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--prompt", help="answer this and stop")
    add_use_flags(parser)
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer in tokens [256]")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy [0]")
    parser.add_argument("--seed", type=int, default=0, help="of sampling [0]")
    arguments = parser.parse(argv)
    opened = open_to_use(arguments)
    if opened.config.endpoint is not None:
        raise ConfigError(
            f"The model of this run is behind {opened.config.endpoint}: ask it there, with the text of "
            f"'{opened.weights(arguments.client)}' before the question."
        )
    model = opened.load_model(arguments.client)
    turns: list[tuple[str, str]] = []

    def reply(text: str) -> str:
        turns.append(("user", text))
        answer = generate(
            opened,
            model,
            turns,
            instruction=opened.instruction(arguments.client),
            tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
        turns.append(("assistant", answer))
        return answer

    if arguments.prompt is not None:
        print(reply(arguments.prompt))
        return 0
    interactive = sys.stdin.isatty()
    while True:
        try:
            text = input("> " if interactive else "").strip()
        except EOFError:
            return 0
        if text:
            print(reply(text), flush=True)


def generate(
    opened: Run,
    model: Any,
    turns: list[tuple[str, str]],
    *,
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    instruction: str = "",
) -> str:
    """Return the model's answer to a conversation of (role, text), the last of which is the user's.

    An instruction stands before all of it, as in the scoring that it was found by.
    """
    import torch

    from weft.data.formats import Turn
    from weft.data.tokenize import prompt_ids
    from weft.data.words import Words
    from weft.launch.population import load_template, template_name

    tokenizer = opened.tokenizer
    template = load_template(
        template_name(opened.config, tokenizer, "text" if opened.config.objective == "causal_lm" else "conversations"),
        opened.config.template_date,
    )
    row = prompt_ids(tuple(Turn(role, said) for role, said in turns), tokenizer, template)
    if instruction:
        words = Words(tokenizer)
        row = words.into(row, words.tokens(instruction))
    ids = torch.from_numpy(row.astype("int64"))[None].to(model.device)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None:
        ids = ids[:, -max(1, limit - tokens) :]
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.no_grad(), quiet_libraries():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
    answer: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return answer.strip()

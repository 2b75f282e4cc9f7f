"""`--dry_run`: the resolved run and its plan in words and numbers, without loading a weight."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from weft import kinds, plugins
from weft.config import RunConfig
from weft.core.types import Tensors
from weft.data.source_kinds import token_cache
from weft.federation.clients import InMemory
from weft.federation.plan import Plan
from weft.federation.state import Participant, begin, expected_streams, task_for
from weft.json_types import JsonObject
from weft.launch.best import read_tasks
from weft.launch.budgets import check_first_round, deciding_units, guarantee_of
from weft.launch.client import ClientBuilder
from weft.launch.data_warnings import warning_lines
from weft.launch.memory_estimate import describe_memory
from weft.launch.mixtures import mixture_text
from weft.launch.own_files import check_own_files
from weft.launch.population import Population, template_name
from weft.launch.privacy_plan import privacy_line, privacy_warnings
from weft.launch.prompt_texts import with_prompt_texts
from weft.launch.template_date import with_template_date
from weft.launch.tokenizer import with_tokenizer
from weft.launch.traffic import mean_bytes, sizes_of
from weft.models.adapters import add_lora
from weft.models.emulator import emulator_of, train_ends
from weft.models.fim_tokens import embeddings_needed, marks_text
from weft.models.instruction import Instruction
from weft.models.load import arithmetic, load_model_config
from weft.models.memory import needs_of
from weft.models.precision import choose_device
from weft.models.prompts import add_prompt
from weft.models.source import model_source
from weft.models.starting import from_adapter
from weft.runs.progress import Progress, split_line
from weft.runs.text import human_bytes, human_number


class Sizes(NamedTuple):
    """Numbers of parameters, and the mean bytes of one client and round."""

    all: int
    trained: int
    tensors: int
    down: float
    up: float
    sealing: str = ""
    """What the protection costs a client in a round."""

    @property
    def traffic(self) -> float:
        """Bytes of one client and round, both ways."""
        return self.down + self.up


def describe(config: RunConfig, *, all_keys: bool = False) -> str:
    """Return the plan, followed by the configuration as YAML: what differs from the defaults, or all keys.

    Nothing is left on disk.

    Raises:
        ConfigError: whatever would stop the run before its first round.
    """
    config = with_prompt_texts(config)
    with rehearsal(config) as rehearsed:
        lines = _plan(rehearsed)
    width = max(len(name) for name in lines)
    plan_text = "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())
    keys = from_adapter(config).model_dump(mode="json")
    head = "# Every key of the run."
    if not all_keys:
        defaults = {name: field.default for name, field in RunConfig.model_fields.items()}
        keys = {key: value for key, value in keys.items() if value != defaults[key]}
        head = "# What differs from the defaults; --all_keys shows every key."
    settings = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
    return f"# The plan: every check passed.\n{plan_text}\n\n{head}\n{settings}".rstrip("\n")


def total_bytes(config: RunConfig) -> float:
    """Return the bytes of all rounds, both ways, without drop-outs; raises as `describe` does."""
    builder = ClientBuilder(from_adapter(config))
    config = builder.config = with_template_date(builder.config, builder.tokenizer)
    population = builder.read(InMemory())
    members = range(min(config.sample_clients, len(population.trained)))
    cohort = len(builder.plan.algorithm.cohort(members, len(population.trained)))
    sizes = count(builder, load_model_config(config), population)
    return sizes.traffic * cohort * config.num_rounds


@contextlib.contextmanager
def rehearsal(config: RunConfig) -> Iterator[RunConfig]:
    """Give the run to a look at its rows that leaves nothing behind: what it tokenizes lies in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        _link_tokens(token_cache(config), Path(folder) / "tokens")
        config = config.model_copy(update={"token_cache": str(Path(folder) / "tokens")})
        yield with_tokenizer(config, Path(folder) / "tokenizer")


def _link_tokens(cache: Path, folder: Path) -> None:
    """Show text that was tokenized before in a folder where more can be tokenized for a while."""
    folder.mkdir()
    for manifest in cache.glob("*/manifest.json"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(manifest.read_text(encoding="utf-8"))["done"]:
                (folder / manifest.parent.name).symlink_to(manifest.parent.resolve())


def _plan(config: RunConfig) -> dict[str, str]:
    """Return the lines of the plan; raises as `describe` does."""
    builder = ClientBuilder(from_adapter(config))
    plan = builder.plan
    tasks = read_tasks(config, plan)
    config = builder.config = with_template_date(builder.config, builder.tokenizer)
    tasks.check_template(builder.tokenizer)
    model_config = None if config.endpoint is not None else load_model_config(config)
    marks = None if model_config is None else marks_text(config, builder.tokenizer, model_config)
    plan.objective.start()
    with Progress(config.num_rounds, quiet=False, as_json=False) as progress:
        population = builder.read(InMemory(), report=progress.tokenizing)
        check_own_files(config, plan, builder.tokenizer)
        check_first_round(guarantee_of(config, plan.privacy, units := deciding_units(config, population.trained)))
        for line in warning_lines(config, population):
            progress.note(line)
        sizes = count(builder, model_config, population)
        for line in privacy_warnings(config, plan, sizes.trained, units):
            progress.note(line)
    remark, mixture = plan.protection.remark, mixture_text(config, population.domains, population.trained)
    private = privacy_line(config, plan, sizes.trained, units)
    traffic = sizes.traffic
    most = "at most " if _packs(plan) else ""
    clients = len(
        plan.algorithm.cohort(range(min(config.sample_clients, len(population.trained))), len(population.trained))
    )
    model, memory = _model(config, model_config, sizes)
    return {
        "algorithm": _algorithm(config),
        **model,
        "trained": f"{sizes.trained} parameters in {sizes.tensors} tensors" + _trained_kind(config),
        "clients": _clients(population, clients),
        **({} if private is None else {"privacy": private}),
        "rows": population.account.summary(),
        **({} if marks is None else {"middles": marks}),
        **({} if mixture is None else {"mixture": mixture}),
        "template": template_name(config, builder.tokenizer, plan.objective.rows),
        "answers": _answers(config, population, plan.objective.rows),
        "local work": f"{_steps(config)}, {config.gradient_accumulation_steps} x {config.batch_size} rows per step",
        "split": split_line(population.split).removeprefix("split "),
        "travels": f"{most}{human_bytes(sizes.down)} down and {human_bytes(sizes.up)} up per client and round"
        if traffic
        else "nothing",
        "a round": f"{most}{human_bytes(traffic * clients)} up+down",
        "the run": f"{most}{human_bytes(traffic * clients * config.num_rounds)} up+down in {config.num_rounds} rounds",
        **({"sealed": f"{sizes.sealing} {remark[0].upper()}{remark[1:]}".strip()} if remark else {}),
        **memory,
    }


def _model(config: RunConfig, model_config: Any, sizes: Sizes) -> tuple[dict[str, str], dict[str, str]]:
    """Return the lines of the model and, where it is here, of its memory."""
    if model_config is None:
        return {"model": f"{config.endpoint_model or config.model_name_or_path} behind {config.endpoint}"}, {}
    device = choose_device(config.device)
    dtype = str(arithmetic(config, device)).removeprefix("torch.")
    needs = needs_of(model_config, sizes.all, sizes.trained, dtype)
    text = f"{config.start_name}: {human_number(sizes.all)} parameters, {dtype} on {device}"
    return {"model": text}, {"memory": describe_memory(config, needs, device)}


def _parameters(builder: ClientBuilder, model_config: Any) -> tuple[int, Tensors]:
    """Return how many parameters there are, and those that are trained, on a model without weights.

    The model's configuration gets the size of a vocabulary that marks are added to.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config, plan = builder.config, builder.plan
    if model_config is None:
        words = config.prompt_method == "text"
        return 0, {"learnt": torch.zeros(config.prompt_length if words else config.black_box_dim)}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
        if (needed := embeddings_needed(config, builder.tokenizer, model_config)) > len(
            model.get_input_embeddings().weight
        ):
            model.resize_token_embeddings(needed, mean_resizing=False)
        every = sum(p.numel() for p in model.parameters())
        if config.prompt_method == "text":
            model.requires_grad_(False)
            model.instruction = Instruction(config.prompt_length).to("meta")
        elif config.prompt_method is not None:
            model = add_prompt(model, config, torch.float32, None)
        emulator = None if config.from_scratch else emulator_of(model_source(config.model_name_or_path))
        if emulator is not None and not config.adapts:
            train_ends(model, emulator)
        if config.use_peft:
            layers = None if emulator is None else emulator.trained
            model = add_lora(model, config, torch.float32, plan.sharing.lora, layers)
    return every, {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}


def _packs(plan: Plan) -> bool:
    """Say whether how many bytes travel depends on the values."""
    return any(getattr(codec, "zstd", False) for codec in (plan.codec, plan.codec_down))


def count(builder: ClientBuilder, model_config: Any, population: Population) -> Sizes:
    """Count the parameters, those that are trained, and the bytes of tensors that travel, headers not included.

    What a side adapter adds to the bytes depends on the run and is left out. Without a model's configuration the model
    is elsewhere.
    """
    config, plan = builder.config, builder.plan
    every, trained = _parameters(builder, model_config)
    down, up, work = 0.0, 0.0, ""
    if plan.algorithm.shares:
        state = begin(plan, trained, {})
        sharing = plan.sharing
        kinds = range(math.lcm(max(1, len(sharing.ranks)), max(1, len(sharing.layers))))
        clients = [Participant("client", 0, sharing.rank_of(i), sharing.layers_of(i)) for i in kinds]
        tasks = [task_for(plan, state, client) for client in clients]
        plan.protection.check(list(state.params))
        names = population.trained.names[: config.sample_clients]
        sizes = [sizes_of(plan, task, names, config.num_rounds) for task in tasks]
        down, up = mean_bytes(config, plan, population, sizes)
        work = plan.protection.work(expected_streams(plan, state.params, 0))
    return Sizes(every, sum(p.numel() for p in trained.values()), len(trained), down, up, work)


def _algorithm(config: RunConfig) -> str:
    names = {
        key: _part_text(getattr(config, key)) + _args_text(getattr(config, kind.args))
        for key, kind in kinds.KINDS.items()
    }
    lora = f", LoRA factors by {names['lora_aggregation']}" if config.use_peft else ""
    mean = f"{names['aggregator']} by {names['client_weight']}{lora}"
    on_the_way = (f"no {k}" if names[k] == "none" else f"{k} {names[k]}" for k in ("privacy", "codec", "protection"))
    down = () if names["codec_down"] == "none" else (f"codec_down {names['codec_down']}",)
    attack = () if names["attack"] == "none" else (f"attacked by {names['attack']}",)
    return ", ".join((names["fed_alg"], mean, *on_the_way, *down, *attack))


def _part_text(name: str) -> str:
    """Return the name of a part, with the content of its file where it lies in one."""
    file = plugins.parse(name)
    return name if file is None else f"{file.public_name} (SHA-256 {plugins.digest_of(plugins.read(file))[:16]}...)"


def _args_text(args: JsonObject) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in args.items())})" if args else ""


def _clients(population: Population, taking_part: int) -> str:
    sizes = population.trained.sizes()
    held_out = sum(len(rows) for rows in population.evaluated.held_out)
    return (
        f"{taking_part} of {len(population.trained)} per round, {sizes.min()} to {sizes.max()} rows each, "
        f"{sizes.sum()} in all, {held_out} held out"
    )


def _trained_kind(config: RunConfig) -> str:
    if config.prompt_method == "text":
        return f" (an instruction of at most {config.prompt_length} bytes)"
    if config.prompt_method is not None:
        private = f", {config.private_tokens} of them private" if config.private_tokens else ""
        count = config.num_virtual_tokens + config.private_tokens
        return f" ({config.prompt_method} prompt of {count} vectors{private})"
    return f" (LoRA r={config.peft_lora_r})" if config.use_peft else " (all)"


def _answers(config: RunConfig, population: Population, rows: str) -> str:
    if rows == "prompts":
        rewards = ", ".join(config.reward)
        return f"{config.num_generations} to a prompt, of at most {config.max_new_tokens} tokens, rewarded by {rewards}"
    return ", ".join(population.choices) if population.choices else "open (no closed set)"


def _steps(config: RunConfig) -> str:
    if config.max_steps > 0:
        return f"{config.max_steps} steps per client and round"
    return f"{config.num_train_epochs} passes over each client's rows per round"

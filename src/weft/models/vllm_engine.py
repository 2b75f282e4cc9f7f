"""Answers sampled by vLLM instead of torch, with the weights of the resident model.

The weights are handed over before every call, so the answers are those of the model as it is then. vLLM runs in this
process: nothing is pickled on the way. On a GPU it sleeps between calls: its weights wait in the CPU's memory, and its
cache is freed for training. Its arithmetic is its own, so its answers are not those of torch to the last bit.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from weft.config import RunConfig
from weft.core.model_types import CausalModel
from weft.core.parts import LoraAggregation
from weft.core.seeds import derive
from weft.errors import ConfigError, MissingExtra
from weft.models.checkpoint import find_checkpoint
from weft.models.source import model_source

if TYPE_CHECKING:
    from weft.models.generate import Sampling
    from weft.models.resident import Resident

Weights = Iterator[tuple[str, Tensor]]


class VllmEngine:
    """vLLM with the model of a run; it is started by the first call."""

    def __init__(self, config: RunConfig, lora: LoraAggregation | None = None) -> None:
        """Take the run that names the model, and how its LoRA factors are combined.

        Raises:
            ConfigError: vLLM cannot be given the weights of such a model.
        """
        if config.from_scratch or config.load_in_4bit or config.load_in_8bit:
            kind = "trained from scratch" if config.from_scratch else "quantised by bitsandbytes"
            raise ConfigError(
                f"generation_engine is vllm, and the model is {kind}, so vLLM cannot be given its weights: leave out "
                "--generation_engine."
            )
        if lora is not None and lora.shape:
            raise ConfigError(
                f"generation_engine is vllm, and lora_aggregation {config.lora_aggregation} puts more beside a layer "
                "than A and B, which vLLM cannot be given: choose another --lora_aggregation, or leave out "
                "--generation_engine."
            )
        self._config = config
        self._source = model_source(config.model_name_or_path)
        self._llm: Any = None
        self._sleeps = False

    def sample(
        self, model: Resident, prompts: Sequence[np.ndarray], sampling: Sampling, copies: int, seed: int, ends: set[int]
    ) -> list[list[list[int]]]:
        """Return the tokens of `copies` answers to every prompt, in order.

        Args:
            model: whose weights sample.
            prompts: token ids (P,) of each.
            sampling: length limit, temperature and top_p.
            copies: answers per prompt.
            seed: of the sampling.
            ends: tokens that end an answer, which holds them.
        """
        if not prompts:
            return []
        with _random_state(model.device):
            first = self._llm is None
            if first:
                self._llm = self._start(model)
            elif self._sleeps:
                self._llm.wake_up()
            pairs = list(all_weights(model.base) if first else changed_weights(model))
            if first:
                self._check_names(pairs)
            self._llm.apply_model(lambda inside: inside.load_weights(iter(pairs)))
            self._llm.reset_prefix_cache()  # of the weights before
            outputs = self._llm.generate(
                [{"prompt_token_ids": [int(token) for token in prompt]} for prompt in prompts],
                [self._parameters(sampling, copies, derive(seed, "prompt", n), ends) for n in range(len(prompts))],
                use_tqdm=False,
            )
            if self._sleeps:
                self._llm.sleep(level=1)
        texts = [[[int(token) for token in one.token_ids] for one in output.outputs] for output in outputs]
        return [group if len(group) == copies else group * copies for group in texts]

    def _start(self, model: Resident) -> Any:
        """Start vLLM; ConfigError where it cannot be, MissingExtra where it is not installed."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # otherwise weights would be pickled into another process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm import LLM
        except ImportError:
            raise MissingExtra("vllm", "vllm", "generation_engine vllm") from None
        self._sleeps = model.device.type == "cuda"
        try:
            return LLM(
                model=self._source,
                skip_tokenizer_init=True,
                trust_remote_code=self._config.trust_remote_code,
                dtype=str(model.dtype).removeprefix("torch."),
                seed=0,
                max_model_len=-1,  # as long as the model and the memory allow
                generation_config="vllm",
                gpu_memory_utilization=self._config.vllm_memory,
                enable_sleep_mode=self._sleeps,
            )
        except (RuntimeError, ValueError, OSError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ConfigError(
                f"vLLM cannot be started with '{self._config.model_name_or_path}' ({reason}): give it another share of "
                "the GPU's memory by --vllm_memory, or leave out --generation_engine."
            ) from None

    def _check_names(self, pairs: Sequence[tuple[str, Tensor]]) -> None:
        """Refuse weights that have other names in the model than in its files, by which vLLM knows them."""
        stored = set(find_checkpoint(self._source, self._config.token).plain_name_of.values())
        unknown = next((name for name, _ in pairs if name not in stored), None)
        if unknown is not None:
            raise ConfigError(
                f"The weight '{unknown}' of '{self._config.model_name_or_path}' has another name in its files, by "
                "which vLLM knows it: leave out --generation_engine."
            )

    @staticmethod
    def _parameters(sampling: Sampling, copies: int, seed: int, ends: set[int]) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=copies if sampling.temperature else 1,  # equal answers are made once
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed % (1 << 63),
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=sorted(ends),
            detokenize=False,
        )


def check_adapter(model: CausalModel) -> None:
    """Refuse an adapter whose sum with the base is no set of weights of that base.

    Raises:
        ConfigError: DoRA, a second adapter, a factor between A and B, or a layer that shares its weight.
    """
    shared = _shared_weights(model)
    for name, layer in _adapted_layers(model):
        if len(_adapters(layer)) != 1 or getattr(layer, "lora_magnitude_vector", None):
            raise ConfigError(
                "generation_engine is vllm, which takes plain LoRA adapters, and this run has DoRA or several adapters "
                "in a layer: leave out --generation_engine."
            )
        if id(layer.get_base_layer().weight) in shared:
            raise ConfigError(
                f"generation_engine is vllm, and the layer '{name}' with a LoRA shares its weight with another layer: "
                "choose other --peft_lora_target_modules, or leave out --generation_engine."
            )


def all_weights(model: CausalModel) -> Weights:
    """Return every weight of the model inside peft's wrapper, its LoRA added, by the names of a plain model."""
    adapted = dict(_adapted_layers(model))
    yield from _added(adapted)
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        if owner.rpartition(".")[0] in adapted and owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            if last != "weight":
                yield f"{owner}.{last}", parameter.detach()
        elif not any(name.startswith(f"{layer}.") for layer in adapted):
            yield name, parameter.detach()


def changed_weights(model: Resident) -> Weights:
    """Return the weights that training may have changed, as `all_weights` does."""
    adapted = dict(_adapted_layers(model.base))
    if adapted:
        yield from _added(adapted)
    else:
        yield from ((name, parameter.detach()) for name, parameter in model.params.items())


def _adapted_layers(model: CausalModel) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def _adapters(layer: Any) -> list[str]:
    """Return the names of a layer's LoRA adapters; those of an embedding are in a table of their own."""
    return [*layer.lora_A, *getattr(layer, "lora_embedding_A", ())]


def _shared_weights(model: CausalModel) -> set[int]:
    """Return the ids of the weights that several layers have."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _added(adapted: dict[str, nn.Module]) -> Weights:
    """Return W + s B A of every layer with a LoRA, computed in float32."""
    with torch.no_grad():
        for name, layer in adapted.items():
            weight = layer.get_base_layer().weight  # type: ignore[operator]
            delta = layer.get_delta_weight(_adapters(layer)[0])  # type: ignore[operator]
            yield f"{name}.weight", (weight.float() + delta.float()).to(weight.dtype)


@contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    """Leave the global random numbers as they were: vLLM seeds them when it starts."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

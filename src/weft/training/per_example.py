"""Gradients of single examples of a batch, from one backward pass.

Hooks note what every trained layer reads, and the gradient of what it returns; parameters themselves get no gradient
from autograd. A layer must keep lines apart: its first axis counts the lines of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from weft.core.types import Tensors
from weft.errors import ConfigError
from weft.models.compiled import plain_layers
from weft.models.resident import Resident
from weft.training.layer_gradients import LayerGradient, Lookup, Owners, Whole, joined, matrix_gradient

ROUNDING = 2.0**-20
"""Largest rounding of a sum in float32, as a share of the sum of its terms' norms: that of sixteen terms in a row."""


class PerExample:
    """The gradients of the examples of one batch at a time, with respect to the trained parameters of a model."""

    def __init__(self, model: Resident) -> None:
        """Find the layers that have trained parameters of their own.

        Raises:
            ConfigError: a trained parameter belongs to no layer that is called.
        """
        self.model = model
        self._names = {id(value): name for name, value in model.params.items() if value.requires_grad}
        self._owners = Owners(torch.zeros(0, dtype=torch.int64), 0)
        self._parts: dict[str, list[LayerGradient]] = {}
        self._vectors: list[tuple[Tensor, Tensor]] = []
        self._silent = False
        encoders = getattr(model.model, "prompt_encoder", None) if model.front is not None else None
        prompts = list(encoders.values()) if encoders is not None else []
        inside = {id(module) for encoder in prompts for module in encoder.modules()}
        self._prompt = {
            self._names[id(value)]: value
            for encoder in prompts
            for value in encoder.parameters()
            if id(value) in self._names
        }
        self._layers = [
            (path, module)
            for path, module in model.model.named_modules()
            if id(module) not in inside and any(id(value) in self._names for value in module.parameters(recurse=False))
        ]
        for path, module in self._layers:
            if type(module).forward in (nn.Module.forward, nn.ParameterList.forward):
                raise _unknown(path, module)

    def gradients(self, losses: Callable[[], Tensor], owners: Owners) -> dict[str, LayerGradient]:
        """Return, by parameter, the gradients of the losses of all examples.

        Args:
            losses: computes the losses (any shape), each of which depends on the lines of one example.
            owners: the examples that the lines of the batch belong to.

        Raises:
            ConfigError: a layer does not keep the lines of the batch apart.
        """
        self._owners, self._parts, self._vectors = owners, {}, []
        with self._watched():
            losses().sum().backward()  # type: ignore[no-untyped-call]
        parts, self._parts = self._parts, {}
        for name, gradient in self._prompt_gradients():
            parts.setdefault(name, []).append(gradient)
        return {name: joined(gradients) for name, gradients in parts.items()}

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Note inputs and output gradients inside the context; autograd computes no gradients of weights there."""
        watched = [self.model.params[name] for name in self._names.values() if name not in self._prompt]
        # Before other hooks, which may change what the layer itself returned, such as by a gate.
        hooks = [
            module.register_forward_hook(partial(self._called, path), with_kwargs=True, prepend=True)
            for path, module in self._layers
        ]
        for parameter in watched:
            parameter.requires_grad_(False)
        if self.model.front is not None:
            self.model.front.by_line = self._by_line
        try:
            with plain_layers(self.model.compiled):
                yield
        finally:
            if self.model.front is not None:
                self.model.front.by_line = None
            for parameter in watched:
                parameter.requires_grad_(True)
            for hook in hooks:
                hook.remove()

    def _called(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note a call of a layer, and wait for the gradient of its output."""
        if self._silent or not torch.is_grad_enabled():
            return
        inputs = args[0] if args else next(iter(kwargs.values()))
        if not isinstance(output, Tensor) or not isinstance(inputs, Tensor):
            raise _unknown(path, module)
        if not output.requires_grad:
            output.requires_grad_()
        known = (inputs.detach(), output.detach() if _is_dora(module) else None, kwargs)
        output.register_hook(partial(self._returned, path, module, known))  # type: ignore[no-untyped-call]

    def _returned(
        self, path: str, module: nn.Module, known: tuple[Tensor, Tensor | None, dict[str, Any]], gradient: Tensor
    ) -> None:
        """Note the gradients of a layer's own parameters, given that of its output."""
        inputs, output, kwargs = known
        lines = len(self._owners.of_line)
        if len(inputs) != lines or len(gradient) != lines:
            raise _unknown(path, module)
        own: Tensors = {name: own for name, own in module.named_parameters(recurse=False) if id(own) in self._names}
        for name, found in self._of_layer(module, own, inputs, output, kwargs, gradient.detach()).items():
            self._parts.setdefault(self._names[id(own[name])], []).append(found)

    def _of_layer(
        self,
        module: nn.Module,
        own: Tensors,
        inputs: Tensor,
        output: Tensor | None,
        kwargs: dict[str, Any],
        gradient: Tensor,
    ) -> dict[str, LayerGradient]:
        owners = self._owners
        if isinstance(module, nn.Embedding):
            if module.max_norm is not None or module.scale_grad_by_freq:
                raise _unknown(type(module).__name__, module)
            numbers = owners.line_up(inputs[..., None])[..., 0]
            vectors = owners.line_up(gradient)
            if module.padding_idx is not None:  # that row gets no gradient from autograd either
                vectors = vectors.masked_fill((numbers == module.padding_idx)[..., None], 0.0)
            return {"weight": Lookup(numbers, vectors, module.num_embeddings)}
        # transformers' Conv1D is a linear layer whose weight is (inputs, outputs).
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            left, right = owners.line_up(gradient), owners.line_up(inputs.to(gradient.dtype))
            found: dict[str, LayerGradient] = {}
            if "weight" in own:
                straight = isinstance(module, nn.Linear)
                found["weight"] = matrix_gradient(left, right) if straight else matrix_gradient(right, left)
            if "bias" in own:
                found["bias"] = Whole(left.float().sum(1))
            return found
        if output is not None:
            return {"weight": _of_magnitude(module, owners, inputs, output, kwargs, gradient)}
        return self._by_lines(module, own, inputs, gradient)

    def _by_lines(self, module: nn.Module, own: Tensors, inputs: Tensor, gradient: Tensor) -> dict[str, LayerGradient]:
        """Return the gradients of any layer of one input, whose forward pass is repeated line by line."""

        def product(values: Tensors, line: Tensor, back: Tensor) -> Tensor:
            out: Tensor = functional_call(module, values, (line[None],))
            return (out * back[None]).sum()

        self._silent = True
        try:
            with torch.enable_grad():
                values = {name: value.detach() for name, value in own.items()}
                each = vmap(grad(product), in_dims=(None, 0, 0))(values, inputs, gradient)
        finally:
            self._silent = False
        return {name: Whole(self._owners.add_up(value)) for name, value in each.items()}

    def _by_line(self, vectors: Tensor) -> Tensor:
        """Return a prompt's vectors (n, width) for every line by itself, (lines, n, width)."""
        lines = len(self._owners.of_line)
        each = vectors.detach().expand(lines, *vectors.shape).clone().requires_grad_()
        self._vectors.append((vectors, each))
        return each

    def _prompt_gradients(self) -> Iterator[tuple[str, LayerGradient]]:
        """Yield the gradients of what makes the vectors of a prompt, given those of the vectors of every line."""
        for vectors, each in self._vectors:
            if each.grad is None:
                continue
            wanted = list(self._prompt.items())
            found: list[list[Tensor]] = [[] for _ in wanted]
            for one in self._owners.add_up(each.grad).to(vectors.dtype):
                gradients = torch.autograd.grad(
                    vectors, [value for _, value in wanted], one, retain_graph=True, materialize_grads=True
                )
                for kept, gradient in zip(found, gradients, strict=True):
                    kept.append(gradient.float())
            for (name, _), kept in zip(wanted, found, strict=True):
                yield name, Whole(torch.stack(kept))
        self._vectors = []


def norms(gradients: dict[str, LayerGradient]) -> Tensor:
    """Return (E,) float64: the joint L2 norm of every example's gradients of all parameters."""
    squares = [gradient.squares() for gradient in gradients.values()]
    return torch.stack(squares).sum(0).sqrt()


def clipped_sums(gradients: dict[str, LayerGradient], bound: float) -> Tensors:
    """Return, by parameter, the sum of the examples' gradients, each scaled to a joint norm of at most `bound`.

    An example whose gradient is not finite adds nothing.

    Args:
        gradients: by parameter.
        bound: above 0; infinity: nothing is scaled.
    """
    # What is added up in float32 may differ from the gradient by its rounding, which is one of the terms before they
    # cancel: parameters that somebody chose for it could carry a row beyond the bound of a norm that is exact.
    sizes = norms(gradients) + ROUNDING * torch.stack([gradient.mass() for gradient in gradients.values()]).sum(0)
    factors = (bound / sizes).clamp(max=1.0).float()
    finite = torch.isfinite(sizes)
    if bool(finite.all()):
        return {name: gradient.total(factors) for name, gradient in gradients.items()}
    sums = {}
    for name, gradient in gradients.items():
        values = gradient.whole().values
        kept = values[finite]
        sums[name] = Whole(kept).total(factors[finite]) if len(kept) else torch.zeros_like(values[0])
    return sums


def _of_magnitude(
    module: nn.Module, owners: Owners, inputs: Tensor, output: Tensor, kwargs: dict[str, Any], gradient: Tensor
) -> LayerGradient:
    """Return the gradients of DoRA's magnitudes m: the output and the base's are m / |W| times what they scale."""
    base_layer, base = kwargs["base_layer"], kwargs.get("base_result")
    if base is None:
        weight = base_layer.weight.T if module.fan_in_fan_out else base_layer.weight
        base = F.linear(inputs, weight.to(inputs.dtype))
    elif base_layer.bias is not None:
        base = base - base_layer.bias
    magnitude = module.get_parameter("weight").detach()
    scaled = (output + base.detach()).float() * gradient.float()
    return Whole(owners.line_up(scaled).sum(1) / magnitude.float())


def _is_dora(module: nn.Module) -> bool:
    return type(module).__name__ == "DoraLinearLayer"


def _unknown(path: str, module: nn.Module) -> ConfigError:
    return ConfigError(
        f"The gradients of single rows cannot be computed for the layer '{path}' ({type(module).__name__}): train an "
        "adapter or a prompt instead (--use_peft, --prompt_method soft), or write --privacy_unit client."
    )

"""Fast dropout is dropout: the right share, the right scale, the right gradient, the seed's bits."""

from __future__ import annotations

import pytest
import torch

from weft.models.dropout import FastDropout


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_the_stated_share_is_dropped_and_the_rest_is_scaled_up(p: float):
    torch.manual_seed(0)
    out = FastDropout(p)(torch.ones(1001, 999))
    dropped = (out == 0).float().mean().item()
    assert dropped == pytest.approx(p, abs=2e-3)
    assert torch.allclose(out[out > 0], torch.tensor(1 / (1 - p)))
    assert out.mean().item() == pytest.approx(1, abs=1e-2)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    gone = (FastDropout(0.5)(torch.ones(400_000)) == 0).float().view(-1, 4)
    together = gone.T.corrcoef()
    assert (together - torch.eye(4)).abs().max() < 0.01


def test_dropout_masks_gradients_repeats_by_seed_and_does_nothing_in_evaluation():
    layer, x = FastDropout(0.5), torch.ones(64, requires_grad=True)
    torch.manual_seed(1)
    out = layer(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    torch.manual_seed(1)
    assert torch.equal(layer(x), out)
    assert layer.eval()(x) is not None
    assert torch.equal(layer(x), x)

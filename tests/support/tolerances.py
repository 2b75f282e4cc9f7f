"""How far two runs may lie apart that do the same sums in another order, and AdamW that can be compared at all.

AdamW's step is lr u, u = m / (sqrt(v) + e), m and v the means of gradients and of their squares. Where a gradient is
little but rounding, the usual e of 1e-8 makes a whole step of it: two CPUs, or one process and two, then differ by up
to 2 lr in that element, and no tolerance tells this from a fault. With e far above the rounding they stay together:
if every gradient is changed by at most r, m and sqrt(v) are (both are means with weights that sum to 1, and a
root of a mean of squares moves by no more than its terms), so that

    |du| <= |dm| / e + |m| / sqrt(v) * |dsqrt(v)| / e <= (1 + K) r / e,

K the largest |m| / sqrt(v): by Cauchy and Schwarz K^2 <= n sum(w^2), w the weights of n gradients in m, which is at
most 1.1 for n up to 10 and beta1 0.9. Hence |du| <= 3 r / e.

What r is: gradients are clipped to a norm of 1 over some N parameters, so that one of them is about N^-0.5 (0.006 for
the tiny model's 30,000; an adapter's 2,500: 0.02). It is a sum of some 2,000 products along its longest way (two
layers of 32 and 64 columns there and back, 640 logits, up to 500 tokens), each rounded by 2^-24 of its size:
r = 2000 * 2^-24 * 0.02 = 2.4e-6 if all of them erred to one side.
"""

from __future__ import annotations

UNIT = 2.0**-24
"""Rounding to nearest in float32, relative."""
GRADIENT = 2000 * UNIT * 0.02
"""r of the module's text."""
EPSILON = 1e-2
"""e of the module's text: about as large as the gradients, so that AdamW still scales each of them by its own size."""
LOSS = 2 * 2000 * UNIT / 6 / 100**0.5
"""How far, relatively, two losses of the tiny model lie apart: a logit of a size of 1 is a sum as above, a token's loss
(6 at first) moves by twice what its logits move by, and a loss is the mean of 100 tokens or more."""
STEADY = {"adam_epsilon": EPSILON}
"""Keys of a run that is compared with one of another order of arithmetic."""


def after_steps(steps: int, lr: float, *, largest: float = 1.0, gain: float = 1.0) -> dict[str, float]:
    """Return rtol and atol for parameters after steps of AdamW with `STEADY`.

    Args:
        steps: of the optimizer, in all rounds.
        lr: the highest learning rate.
        largest: the largest parameter there is: storing it, or a change of it, rounds by `UNIT` of it up to four times
            a step (step, difference, mean, sum).
        gain: by what the server multiplies what clients send.
    """
    return {"rtol": 0.0, "atol": gain * steps * (3 * lr * GRADIENT / EPSILON + 4 * UNIT * largest)}


def after_plain_steps(steps: int, lr: float, *, largest: float = 1.0) -> dict[str, float]:
    """Return the same after steps of SGD: lr r instead of 3 lr r / e."""
    return {"rtol": 0.0, "atol": steps * (lr * GRADIENT + 4 * UNIT * largest)}

"""Secret sharing by polynomials over a prime field (Shamir 1979): enough shares give the secret, fewer give nothing.

The field is that of 2^256 + 297, the smallest prime above 2^256, so 32 bytes are one element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, islice

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
"""A share can be as large as the prime, which has 257 bits."""
TRIES = 200
"""Subsets of shares that are tried where some of them are wrong."""


COEFFICIENT_BYTES = 64
"""Random bytes of a coefficient: a remainder of so many is uniform to 2^-255."""


def split(secret: bytes, places: Sequence[int], threshold: int, random: Callable[[int], bytes]) -> dict[int, bytes]:
    """Return a share of 33 bytes for each place.

    Args:
        secret: 32 bytes.
        places: different numbers from 1, one for each holder.
        threshold: shares that give the secret, from 1 to the number of places.
        random: returns so many bytes that nobody else can know; each secret has its own.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(places) or min(places) < 1:
        raise ValueError("a secret of 32 bytes is split into at least as many shares as give it back")
    drawn = random(COEFFICIENT_BYTES * (threshold - 1))
    pieces = (drawn[at : at + COEFFICIENT_BYTES] for at in range(0, len(drawn), COEFFICIENT_BYTES))
    coefficients = [int.from_bytes(secret, "big"), *(int.from_bytes(piece, "big") % PRIME for piece in pieces)]
    return {place: _value(coefficients, place).to_bytes(SHARE_BYTES, "big") for place in places}


def _value(coefficients: Sequence[int], place: int) -> int:
    total = 0
    for coefficient in reversed(coefficients):  # Horner's rule
        total = (total * place + coefficient) % PRIME
    return total


def join(shares: Mapping[int, bytes], threshold: int, fits: Callable[[bytes], bool]) -> bytes | None:
    """Return the secret of which these are shares, or None where no `threshold` of them give one that fits.

    Args:
        shares: by place; some may be wrong.
        threshold: as in `split`.
        fits: tells a secret by what is known of it in public.
    """
    places = sorted(place for place, share in shares.items() if len(share) == SHARE_BYTES)
    for chosen in islice(combinations(places, threshold), TRIES):
        total = sum(
            factor * int.from_bytes(shares[place], "big")
            for place, factor in zip(chosen, _factors(chosen), strict=True)
        )
        value = total % PRIME
        if value >> (8 * SECRET_BYTES):
            continue
        secret = value.to_bytes(SECRET_BYTES, "big")
        if fits(secret):
            return secret
    return None


@lru_cache(maxsize=1024)
def _factors(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return Lagrange's factors of the values at these places for the value at 0."""
    factors = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(factors)

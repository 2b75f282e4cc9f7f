"""Messages as bytes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.core import wire
from weft.core.types import Failure, Probe, Score, Task, Undo, Update


def same(one: object, two: object) -> bool:
    """Whether two messages are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[name], two[name]) for name in one)
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(two) and all(same(vars(one)[name], vars(two)[name]) for name in vars(one))
    return one == two


names = st.text(min_size=1, max_size=20)
values = st.sampled_from(
    [
        *(torch.ones(3), torch.zeros(2, 0), torch.tensor(5), torch.ones(2, 3).bfloat16(), torch.tensor([True, False])),
        *(torch.tensor([1, 2], dtype=kind) for kind in (torch.int8, torch.uint8, torch.int16, torch.uint16)),
    ]
)
parts = st.dictionaries(names, values, max_size=3)
streams = st.dictionaries(names, parts, max_size=3)
numbers = st.integers(0, 1 << 40)
floats = st.floats(allow_nan=False, allow_infinity=False)
messages = st.one_of(
    st.builds(Task, names, numbers, numbers, parts, streams, numbers),
    st.builds(Probe, names, numbers, parts, streams, st.booleans()),
    st.builds(Undo, names, numbers),
    st.builds(Update, names, numbers, numbers, streams, floats, st.dictionaries(names, floats, max_size=3), numbers),
    st.builds(Score, names, numbers, st.dictionaries(names, floats, max_size=3)),
    st.builds(Failure, names, numbers, st.text(max_size=50)),
)


@settings(max_examples=200, deadline=None)
@given(message=messages)
def test_a_packed_message_unpacks_to_the_same_message(message):
    found = wire.unpack(wire.pack(message, "r"), run="r")
    assert same(found, message)

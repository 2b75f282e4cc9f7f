"""The templates and expressions of task files: Jinja, in its sandbox, over the columns of a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from weft.errors import DataError
from weft.tasks import math_answers, spans

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

    from weft.json_types import JsonObject


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # A task file is somebody's data: the sandbox keeps it from Python's internals.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _regex_replace
    environment.filters["regex_find"] = _regex_find
    environment.globals |= {"drop_answers": spans.right_answers, "boxed": math_answers.boxed}
    return environment


def _regex_replace(text: str, pattern: str, replacement: str = "") -> str:
    """Return a text with every match of a pattern replaced."""
    return re.sub(pattern, replacement, text)


def _regex_find(text: str, pattern: str) -> str:
    """Return the first group of the first match of a pattern, or the whole match; "" where there is none."""
    match = re.search(pattern, text)
    return "" if match is None else str(match[1] if match.groups() else match[0])


def fault_of(text: str, *, expression: bool) -> str | None:
    """Return what is wrong with the syntax of a template or an expression, None if nothing is."""
    from jinja2 import TemplateSyntaxError

    try:
        _compiled(text, expression)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}" if "\n" in text else str(error.message)
    return None


@lru_cache(maxsize=512)
def _compiled(text: str, expression: bool) -> Callable[..., Any]:
    if expression:
        return _environment().compile_expression(text, undefined_to_none=False)
    return _environment().from_string(text).render


def render(template: str, values: Mapping[str, object]) -> str:
    """Return the text that a template makes of a row's values.

    Raises:
        DataError: it uses a column that the row lacks, or a value that it cannot work with.
    """
    if "{" not in template:
        return template
    return str(_result(template, False, values))


def evaluate(expression: str, values: JsonObject) -> Any:
    """Return the value of an expression over a row's values; raises as `render`."""
    return _result(expression, True, values)


def _result(text: str, expression: bool, values: Mapping[str, object]) -> Any:
    from jinja2 import Undefined, UndefinedError
    from jinja2.exceptions import SecurityError

    try:
        result = _compiled(text, expression)(**values)
        if isinstance(result, Undefined):
            str(result)  # of StrictUndefined: raises, and names the column
        return result
    except UndefinedError as error:
        columns = ", ".join(map(str, values)) or "none"
        raise DataError(
            f"'{_short(text)}' cannot be filled ({error.message}): the row has the columns {columns}."
        ) from None
    except SecurityError as error:
        raise DataError(f"'{_short(text)}' is not allowed ({error}): use the columns of the row alone.") from None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise DataError(f"'{_short(text)}' fails on this row ({type(error).__name__}: {error}).") from None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."

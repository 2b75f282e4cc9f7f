"""Parts outside Weft: a class or function in a user's file, or an entry point of an installed package.

The module of a file is named after the SHA-256 of its content: an edited file is another module, and equal content is
loaded once. Nothing is imported before a part is used.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from weft.errors import ConfigError, WeftError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_PATTERN = re.compile(r"(?P<path>.*\.py)(?::(?P<name>\w+))?(?:@sha256:(?P<digest>[0-9a-f]{64}))?", re.DOTALL)


@dataclass(frozen=True)
class PartFile:
    """A part in a Python file: FILE.py:NAME, or FILE.py:NAME@sha256:DIGEST where the content is fixed."""

    path: str
    name: str
    """Name of the class or function; "" where none is given."""
    digest: str = ""
    """Required SHA-256 of the file, 64 hexadecimal digits; "": any content."""

    def __str__(self) -> str:
        return self.path + (f":{self.name}" if self.name else "") + (f"@sha256:{self.digest}" if self.digest else "")

    @property
    def public_name(self) -> str:
        """The part without the folder of its file, for messages to other parties."""
        return os.path.basename(self.path) + (f":{self.name}" if self.name else "")


def parse(text: str) -> PartFile | None:
    """Return the file and name of a part, or None for a text that names no Python file."""
    match = _PATTERN.fullmatch(text)
    return PartFile(match["path"], match["name"] or "", match["digest"] or "") if match else None


def public_name(text: str) -> str:
    """Return the name of a part without the folder of its file, for messages to other parties."""
    file = parse(text)
    return text if file is None else file.public_name


def digest_of(source: bytes) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(source).hexdigest()


def read(file: PartFile) -> bytes:
    """Return the content of a part's file.

    Raises:
        ConfigError: there is no such file, or its SHA-256 is not the required one.
    """
    path = Path(file.path).expanduser()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"'{path}', which is to hold {file.name or 'a part'}, cannot be read ({error.strerror}): check the path."
        ) from None
    if file.digest and digest_of(source) != file.digest:
        raise ConfigError(
            f"'{path}' has the SHA-256 {digest_of(source)[:16]}..., and {file.digest[:16]}... is asked for: put back "
            "the content that is meant, or name the file anew."
        )
    return source


def load_file(file: PartFile) -> Any:
    """Return the object that a file defines under a name.

    Raises:
        ConfigError: no such file, another content than required, invalid Python, an exception on import, or no such
            name.
    """
    path = Path(file.path).expanduser()
    source = read(file)
    try:
        module = module_of(source, path)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        raise ConfigError(f"'{path}' is not valid Python ({where}{error.msg}): correct it.") from None
    # The user's code runs here: a script may call sys.exit on import.
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"'{path}' cannot be loaded ({type(error).__name__}: {reason}): correct it.") from error
    if not hasattr(module, file.name):
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        guess = difflib.get_close_matches(file.name, names, n=1, cutoff=0.5)
        hint = f" Did you mean '{guess[0]}'?" if guess else f" It defines {', '.join(names) or 'nothing'}."
        raise ConfigError(f"'{path}' holds no '{file.name}'.{hint}")
    return getattr(module, file.name)


def module_of(source: bytes, path: Path) -> ModuleType:
    """Return the module of a file's content, which is executed once; its exceptions are passed on."""
    # The path is part of the name: equal files in two folders have different `__file__`.
    place = os.path.abspath(path)
    name = f"weft_part_{digest_of(source)[:32]}_{digest_of(place.encode())[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = place
    code = compile(source, place, "exec", dont_inherit=True)
    sys.modules[name] = module  # dataclasses look up their module while it is executed
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def installed_parts(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of installed packages in a group, by name.

    Raises:
        ConfigError: two packages define the same name.
    """
    from importlib.metadata import entry_points

    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            raise ConfigError(
                f"Two installed packages offer '{point.name}' in {group}, {package_of(other)} and {package_of(point)}: "
                "uninstall one of them."
            )
    return points


def load_installed(point: EntryPoint, word: str) -> Any:
    """Return the object of an entry point; raise ConfigError if its package cannot be loaded."""
    try:
        return point.load()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"The {word} '{point.name}' of the package {package_of(point)} cannot be loaded "
            f"({type(error).__name__}: {reason}): install the package anew, or choose another {word}."
        ) from error


def package_of(point: EntryPoint) -> str:
    """Return the name and the version of an entry point's package."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.module


def is_own(part: object) -> bool:
    """Return whether a part is not Weft's: what goes wrong in it is said in a sentence."""
    return not type(part).__module__.startswith("weft.")


def described(error: Exception) -> str:
    """Return an error of a user's part in words, with the place where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())[:200]
    place = f"line {frame.lineno} of '{frame.filename}'"
    return f"{type(error).__name__}{': ' if said else ''}{said.rstrip('.')} ({place})"


@contextmanager
def said(part: object, failure: Callable[[str], WeftError]) -> Iterator[None]:
    """Turn an error of a user's part into one of Weft's; `failure` makes it of the words of `described`."""
    try:
        yield
    except WeftError:
        raise
    except Exception as error:
        if not is_own(part):
            raise
        raise failure(described(error)) from error

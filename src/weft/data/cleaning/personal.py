"""Personal data and secrets by rules: addresses, numbers with their checksums, keys in well-known forms.

Rules find what has a form. Names, diagnoses and places have none, and stay, but for the
names and places that Presidio finds where asked (`names`).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from weft.data.cleaning.cleaner import Cleaner, Sample, Tools
from weft.data.cleaning.names import Finder, finder_of, masked

Rule = tuple[str, re.Pattern[str], Callable[[str], bool]]
"""A kind, what it looks like, and whether what looks like it is one."""


def is_card(text: str) -> bool:
    """Return whether the digits are those of a payment card: its length, its first digit and Luhn's checksum."""
    digits = [int(sign) for sign in text if sign.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (3, 4, 5, 6) or len(set(digits)) < 2:
        return False
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """Return whether a text is an IBAN by its checksum (ISO 13616: the number modulo 97 is 1)."""
    code = "".join(text.split()).upper()
    if not 15 <= len(code) <= 34:
        return False
    turned = code[4:] + code[:4]
    return int("".join(str(int(sign, 36)) for sign in turned)) % 97 == 1


def is_public_address(text: str) -> bool:
    """Return whether a text is an IP address of the public network."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def is_phone(text: str) -> bool:
    """Return whether a number has as many digits as a telephone number."""
    return 8 <= sum(map(str.isdigit, text)) <= 15


def _always(text: str) -> bool:
    return True


def _is_mixed(text: str) -> bool:
    """Return whether a value that is called a password or a key looks like one, and not like a word."""
    value = re.split(r"[:=]\s*", text, maxsplit=1)[-1].strip("\"' ")
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value))


PERSONAL: tuple[Rule, ...] = (
    ("email", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"), _always),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), is_iban),
    ("card", re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.]?\d)"), is_card),
    ("social_security", re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"), _always),
    ("phone", re.compile(r"(?<![\w+])(?<!\d )(?:\+|00)[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,4}\)?){2,5}(?!\w)"), is_phone),
    ("phone", re.compile(r"(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"), is_phone),
    ("ip_address", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)"), is_public_address),
    (
        "ip_address",
        re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![\w:])"),
        is_public_address,
    ),
)
SECRETS: tuple[Rule, ...] = (
    (
        "private_key",
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        _always,
    ),
    ("aws_key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), _always),
    ("github_token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,})\b"), _always),
    ("slack_token", re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"), _always),
    ("google_key", re.compile(r"\bAIza[0-9A-Za-z_-]{35}(?![\w-])"), _always),
    ("api_key", re.compile(r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{20,}"), _is_mixed),
    ("hub_token", re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"), _always),
    ("web_token", re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"), _always),
    (
        "password",
        re.compile(
            r"(?i)\b(?:password|passwd|pwd|api[_-]?key|secret(?:[_-]?key)?|access[_-]?token)\b[\"']?\s*[:=]\s*[\"']?"
            r"[^\s\"',;<>(){}\[\]]{8,128}"
        ),
        _is_mixed,
    ),
)


@dataclass(frozen=True)
class _Masks(Cleaner):
    """Replaces what rules find by the kind in brackets, or leaves such rows out."""

    rules: ClassVar[tuple[Rule, ...]] = ()
    what: ClassVar[str] = ""
    action: Literal["mask", "drop"] = "mask"
    """Put the kind in brackets in its place, such as [EMAIL]; or leave the row out."""

    def rewrite(self, text: str, counts: Counter[str]) -> str:
        """Return the text with the kinds in the place of what was found."""
        return self._mask(text, counts) if self.action == "mask" else text

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows that hold something, where they are to be left out."""
        if self.action == "mask":
            return {}
        held = ((number, sample.text) for number, sample in enumerate(samples))
        return {number: self.what for number, text in held if self._mask(text, Counter()) != text}

    def _mask(self, text: str, counts: Counter[str]) -> str:
        for kind, pattern, holds in self.rules:

            def mask(match: re.Match[str], kind: str = kind, holds: Callable[[str], bool] = holds) -> str:
                # What stands behind a number may look like a part of it.
                value = whole = match.group()
                while value and not holds(value):
                    value = value.rpartition(" ")[0]
                if not value:
                    return whole
                counts[kind] += 1
                return f"[{kind.upper()}]{whole[len(value) :]}"

            text = pattern.sub(mask, text)
        return text


@dataclass(frozen=True)
class PersonalData(_Masks):
    """E-mail addresses, IBANs, card, social security and telephone numbers, public IP addresses; names where asked."""

    rules: ClassVar[tuple[Rule, ...]] = PERSONAL
    what: ClassVar[str] = "personal data"
    presidio: str = ""
    """A spaCy pipeline, such as en_core_web_sm or a folder, by which Presidio finds names too; "": rules alone."""
    kinds: str = "PERSON+LOCATION"
    """What Presidio is to find, a plus between the kinds: PERSON, LOCATION, NRP (groups), DATE_TIME, ORGANIZATION."""

    def start(self) -> None:
        """Refuse a machine without Presidio or the pipeline, where these are asked for."""
        if self.presidio:
            _ = self._find

    def _mask(self, text: str, counts: Counter[str]) -> str:
        text = super()._mask(text, counts)
        return masked(text, self._find, counts) if self.presidio else text

    @cached_property
    def _find(self) -> Finder:
        return finder_of(self.presidio, frozenset(self.kinds.split("+")))


@dataclass(frozen=True)
class Secrets(_Masks):
    """Private keys, API keys, tokens, passwords."""

    rules: ClassVar[tuple[Rule, ...]] = SECRETS
    what: ClassVar[str] = "a secret"

"""`weft verify RUN`: whether the record of a run is intact, and whether its rounds give the same bits once more."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from weft.arguments import Parser
from weft.core.texts import printable
from weft.errors import ConfigError
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from weft.launch.replay import Replayed, Replays
    from weft.sites.signatures import Signatures


def run(argv: list[str]) -> int:
    """Check the record of a run; return 0 if it is intact, else 1."""
    parser = Parser(
        prog="weft verify",
        description="Check that nothing in a run was changed by hand, and repeat rounds of it. "
        "Exit code 0: intact, 1: not, 2: it cannot be checked.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--replay", type=int, default=0, metavar="K", help="repeat K random rounds, and compare bits")
    parser.add_argument("--head", metavar="HASH", help="the head of the record, as the model card or a letter has it")
    parser.add_argument(
        "--authority", metavar="FILE", help="rootCA.pem of the federation, to check signatures of sites"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse(argv)
    if arguments.replay < 0:
        raise ConfigError(f"--replay is {arguments.replay}: write the number of rounds to repeat, such as 2.")
    if arguments.head is not None and not re.fullmatch("[0-9a-f]{64}", arguments.head):
        raise ConfigError(f"--head is '{arguments.head}', which is no hash: write the 64 digits of the model card.")
    from weft.launch.damage import as_written
    from weft.launch.run import Run
    from weft.launch.verify import verify

    with as_written([arguments.run]):
        opened = Run(arguments.run)
        checked = verify(opened.directory, arguments.head)
        signatures = _signatures(opened.path, checked.entries, arguments.authority)
    findings = [*checked.findings, *(signatures.findings if signatures else ())]
    replays = None
    if arguments.replay and not checked.findings:
        from weft.launch.replay import replay

        replays = replay(opened, checked.entries, arguments.replay, _note)
    intact = not findings and (replays is None or replays.passed)
    if arguments.json:
        told: JsonObject = {"intact": intact, "head": checked.head, "rounds": len(checked.rounds)}
        told["findings"] = [finding._asdict() for finding in findings]
        if signatures is not None:
            told |= {"signed": signatures.signed, "unsigned": signatures.unsigned}
        if replays is not None:
            told |= {"replayed": [one._asdict() for one in replays.rounds], "elsewhere": replays.elsewhere}
        print(json.dumps(told))
        return 0 if intact else 1
    for finding in findings:  # names of files and fields are as somebody wrote them
        print(printable(sentence := finding.sentence(), len(sentence)))
    if signatures is not None:
        print(f"{signatures.signed} updates are signed by their sites, {signatures.unsigned} are not.")
    if arguments.replay and checked.findings:
        print("No round was repeated, because the record is not intact.")
    for sentence in _replayed(replays) if replays is not None else ():
        print(printable(sentence, len(sentence)))
    words = f"The record of {len(checked.rounds)} rounds is intact; its head is {checked.head}."
    print(words if intact else "The run is not as it was written.")
    return 0 if intact else 1


def _note(sentence: str) -> None:
    print(f"weft: {sentence}", file=sys.stderr)


def _signatures(run: Path, entries: list[JsonObject], authority: str | None) -> Signatures | None:
    """Return the signatures of the record; None: it is not of sites, or nothing to check them by is at hand."""
    of_sites = any("signed" in entry for entry in entries)
    if not of_sites:
        if authority is not None and entries:
            raise ConfigError(f"The run in '{run}' has no sites, so nothing in it is signed: leave out --authority.")
        return None
    from weft.sites.identity import AUTHORITY
    from weft.sites.signatures import check_record

    # A server keeps its runs in its kit.
    file = Path(authority) if authority is not None else run.absolute().parent.parent / AUTHORITY
    if authority is None and not file.is_file():
        _note("signatures of sites are not checked: add --authority and the rootCA.pem of a start-up kit.")
        return None
    return check_record(entries, file)


def _replayed(replays: Replays) -> list[str]:
    """Return sentences about the rounds that were repeated."""
    sentences = [_words(one) for one in replays.rounds]
    if replays.elsewhere:
        what = ", ".join(f"{name} was {then} and is {now}" for name, (then, now) in replays.elsewhere.items())
        sentences.append(f"The run was made elsewhere ({what}), so its rounds are equal only up to rounding.")
    return sentences


def _words(one: Replayed) -> str:
    if one.equal:
        return f"Round {one.round} was repeated: all bits are equal."
    far = (
        "the state after it is not on disk, so nobody can say how much (--save_model_freq 1 keeps it)"
        if one.distance is None
        else f"the parameters differ by {one.distance:.2g} of the length of the round's step"
    )
    who = f"; replies of {', '.join(one.clients)} differ" if one.clients else ""
    return f"Round {one.round} was repeated: bits differ{who}; {far}."

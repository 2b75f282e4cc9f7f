"""Three invented hospitals, each with notes, questions and an exam about its own specialities only.

Everything is made from the tables below by a seeded generator, so nothing is downloaded and the same seed gives the
same bytes. The facts are shortened to one word each to suit a toy: THEY ARE NO MEDICAL ADVICE. No fact of one hospital
stands in another's notes or questions; what the hospitals share is the language (the same sentences, and the same
possible answers), so a hospital alone understands every question but knows a third of the answers.
The exam asks for every fact once, in a phrasing that no training question uses.
This module does not know of models, tokenizers or files other than the JSON lines it writes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]

SPECIALITIES = {"a": "heart and lungs", "b": "glands, kidneys and digestion", "c": "brain, nerves and mind"}

# condition | treatment | test | symptom
_FACTS = {
    "a": """
        angina | beta blockers | electrocardiogram | chest pain
        fibrillation | anticoagulants | electrocardiogram | palpitations
        cardiomyopathy | diuretics | ultrasound | swelling
        stenosis | surgery | ultrasound | dizziness
        tuberculosis | antibiotics | culture | weight loss
        influenza | antivirals | culture | headache
        sarcoidosis | steroids | biopsy | fatigue
        bronchiectasis | physiotherapy | CT scan | cough
    """,
    "b": """
        diabetes | hormones | blood test | thirst
        thyrotoxicosis | beta blockers | blood test | palpitations
        acromegaly | surgery | MRI | headache
        anaemia | vitamins | blood test | dizziness
        cystitis | antibiotics | urine test | fever
        gout | diet | urine test | swelling
        gastritis | diet | endoscopy | nausea
        hepatitis | antivirals | biopsy | fatigue
    """,
    "c": """
        migraine | painkillers | MRI | nausea
        stroke | anticoagulants | CT scan | weakness
        encephalitis | antivirals | lumbar puncture | fever
        myasthenia | immunotherapy | blood test | weakness
        sciatica | physiotherapy | MRI | numbness
        anxiety | sedatives | questionnaire | palpitations
        depression | sedatives | questionnaire | weight loss
        hydrocephalus | surgery | CT scan | confusion
    """,
}
_ATTRIBUTES = ("treatment", "test", "symptom")

_OPENINGS = (
    "A {age} year old {person} with {condition} was seen on {day}.",
    "On {day} a {person} of {age} with {condition} came to the ward.",
    "Note of {day}: {person}, {age} years old, {condition}.",
    "The {person}, {age}, has {condition}.",
)
_STATEMENTS = {
    "treatment": (
        "The treatment for {condition} is {answer}.",
        "Doctors treat {condition} with {answer}.",
        "For {condition} the patient was given {answer}.",
        "Against {condition} the best treatment is {answer}.",
    ),
    "test": (
        "The test for {condition} is {answer}.",
        "Doctors confirm {condition} by {answer}.",
        "To find {condition} the patient was sent to {answer}.",
        "To show {condition} the best test is {answer}.",
    ),
    "symptom": (
        "The symptom of {condition} is {answer}.",
        "Patients with {condition} complain of {answer}.",
        "With {condition} the patient has {answer}.",
        "In {condition} the first symptom is {answer}.",
    ),
}
_PHRASINGS = {
    "treatment": (
        "What is the treatment for {condition}?",
        "How do doctors treat {condition}?",
        "A patient has {condition}. Which treatment is given?",
        "Name the best treatment for {condition}.",
        "Which treatment is right for {condition}?",
    ),
    "test": (
        "What is the test for {condition}?",
        "How do doctors confirm {condition}?",
        "A patient may have {condition}. Which test is done?",
        "Name the best test for {condition}.",
        "Which test is right for {condition}?",
    ),
    "symptom": (
        "What is the symptom of {condition}?",
        "Of what do patients with {condition} complain?",
        "A patient has {condition}. Which symptom is found?",
        "Name the first symptom of {condition}.",
        "Which symptom is usual in {condition}?",
    ),
}
_EXAM_PHRASINGS = {
    "treatment": (
        "Which treatment do doctors give for {condition}?",
        "What is the best treatment against {condition}?",
    ),
    "test": ("Which test do doctors do for {condition}?", "By what test is {condition} best confirmed?"),
    "symptom": ("Which symptom do patients with {condition} have?", "What symptom is the first of {condition}?"),
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Fact:
    """One thing a hospital knows: the `attribute` (treatment, test or symptom) of a `condition`."""

    condition: str
    attribute: str
    answer: str


@dataclass(frozen=True)
class Hospital:
    """One party: `notes` are {text} rows, `questions` and `exam` are {instruction, output} rows."""

    name: str
    specialities: str
    notes: list[Row]
    questions: list[Row]
    exam: list[Row]


def facts(name: str) -> list[Fact]:
    """Everything the hospital `name` ("a", "b" or "c") knows: three facts for each of its conditions."""
    rows = [[cell.strip() for cell in line.split("|")] for line in _FACTS[name].strip().splitlines()]
    return [
        Fact(condition, attribute, answer)
        for condition, *answers in rows
        for attribute, answer in zip(_ATTRIBUTES, answers, strict=True)
    ]


def choices() -> list[str]:
    """Every answer that any question has, sorted: the closed set that the exam's accuracy ranks."""
    return sorted({fact.answer for name in SPECIALITIES for fact in facts(name)})


def make_hospitals(seed: int = 0, notes_per_condition: int = 24) -> list[Hospital]:
    """The three hospitals; one seed gives the same rows in the same order."""
    # A generator for each hospital: changes to one hospital's facts leave the rows of the others as they are.
    return [_make_hospital(name, random.Random(f"{seed}/{name}"), notes_per_condition) for name in SPECIALITIES]


def _make_hospital(name: str, rng: random.Random, notes_per_condition: int) -> Hospital:
    all_facts = facts(name)
    by_condition: dict[str, list[Fact]] = {}
    for fact in all_facts:
        by_condition.setdefault(fact.condition, []).append(fact)
    notes = [
        {"text": _note(condition, condition_facts, rng)}
        for condition, condition_facts in by_condition.items()
        for _ in range(notes_per_condition)
    ]
    questions = [_ask(phrasing, fact) for fact in all_facts for phrasing in _PHRASINGS[fact.attribute]]
    exam = [_ask(rng.choice(_EXAM_PHRASINGS[fact.attribute]), fact) for fact in all_facts]
    rng.shuffle(notes)
    rng.shuffle(questions)
    return Hospital(name, SPECIALITIES[name], notes, questions, exam)


def _note(condition: str, condition_facts: list[Fact], rng: random.Random) -> str:
    opening = rng.choice(_OPENINGS).format(
        condition=condition, age=rng.randint(20, 89), person=rng.choice(("man", "woman")), day=rng.choice(_DAYS)
    )
    sentences = [
        rng.choice(_STATEMENTS[fact.attribute]).format(condition=condition, answer=fact.answer)
        for fact in rng.sample(condition_facts, len(condition_facts))
    ]
    return " ".join([opening, *sentences])


def _ask(phrasing: str, fact: Fact) -> Row:
    return {"instruction": phrasing.format(condition=fact.condition), "output": fact.answer}


def public_glossary(seed: int = 0) -> list[str]:
    """Lines that are no hospital's secret, to train a tokenizer on: all terms in random order, and empty phrases.

    A list names conditions or answers, never both, so that no line ties an answer to a condition.
    """
    rng = random.Random(f"{seed}/glossary")
    conditions = sorted({fact.condition for name in SPECIALITIES for fact in facts(name)})
    lines = []
    for terms in (conditions, choices()):
        for _ in range(20):
            lines.append("Terms: " + ", ".join(rng.sample(terms, len(terms))) + ".")
    blank = {"condition": "it", "answer": "it", "age": "50", "person": "man or woman"}
    tables = (_STATEMENTS, _PHRASINGS, _EXAM_PHRASINGS)
    phrases = [*_OPENINGS, *(phrase for table in tables for group in table.values() for phrase in group)]
    for day in _DAYS:
        lines += [phrase.format(day=day, **blank) for phrase in phrases]
    return lines


def write(directory: Path, seed: int = 0) -> None:
    """Write `notes/`, `questions/` and `exam/` under `directory`, a JSON-lines file for each hospital (a, b, c)."""
    for hospital in make_hospitals(seed):
        _write_rows(directory / "notes" / f"{hospital.name}.jsonl", hospital.notes)
        _write_rows(directory / "questions" / f"{hospital.name}.jsonl", hospital.questions)
        _write_rows(directory / "exam" / f"{hospital.name}.jsonl", hospital.exam)


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())

"""Invented rows, in the real columns, of the evaluation tasks whose data does not lie beside the repository."""

from __future__ import annotations

from typing import Any

LABELS = ("negative", "neutral", "positive")
GRADES = ("strong negative", "mildly negative", "neutral", "mildly positive", "moderately positive")


def _drop(number: int) -> dict[str, Any]:
    date = {"day": "", "month": "", "year": ""}
    answer: dict[str, Any] = {"number": str(number), "date": date, "spans": []}
    if number == 1:
        answer = {"number": "", "date": {"day": "3", "month": "May", "year": "1911"}, "spans": []}
    if number == 2:
        answer = {"number": "", "date": date, "spans": ["the red team"]}
    others = {"number": [answer["number"], "7"], "date": [answer["date"], date], "spans": [answer["spans"], []]}
    text = {"passage": f"The red team won {number} games.", "question": "How many games?"}
    return {"query_id": str(number), "answer": answer, "validated_answers": others} | text


def _hh(number: int) -> dict[str, Any]:
    begin = f"\n\nHuman: Question {number}?\n\nAssistant: Which one?\n\nHuman: That one.\n\nAssistant:"
    return {"chosen": f"{begin} A kind answer.", "rejected": f"{begin} Go away."}


ENDINGS = {f"ending{number}": f"drug {number}" for number in range(4)}
OPTIONS = {"opa": "heart", "opb": "lung", "opc": "skin", "opd": "eye"}
DREAMS = ["The man would have fallen.", "Nothing.", "The sun."]
INVENTED: dict[str, list[dict[str, Any]]] = {
    "medqa": [{"id": str(n), "sent1": f"A patient of {n}?", "sent2": "", "label": n % 4} | ENDINGS for n in range(5)],
    "medmcqa": [{"question": f"Organ {n}?", "cop": n % 4, "subject_name": "Anatomy"} | OPTIONS for n in range(5)],
    "drop": [_drop(number) for number in range(5)],
    "crass": [
        {
            "inputs": f"A man climbs tree {n}. What if not?",
            "targets": [DREAMS[n % 3]],
            "multiple_choice_targets": DREAMS,
        }
        for n in range(5)
    ],
    "fpb": [{"sentence": f"Profit of firm {n} changed.", "label": n % 3} for n in range(5)],
    "fiqa": [{"sentence": f"Shares of {n}", "sentiment_score": s} for n, s in enumerate((-0.5, -0.1, 0.0, 0.1, 0.9))],
    "nwgi": [{"news": f"News {number}.", "label": grade} for number, grade in enumerate(GRADES)],
    "conala": [
        {"intent": f"sum {n}", "rewritten_intent": [f"sum list {n}", None][n % 2], "snippet": f"sum(values[{n}:], {n})"}
        for n in range(5)
    ],
    "concode": [{"id": n, "nl": f"get {n}", "code": f"int get{n} ( ) {{ return field + {n} ; }}"} for n in range(5)],
    "hh_helpful_base_test": [_hh(number) for number in range(5)],
}

"""Pictures, reports and cards are whole whatever labels and names are in them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from html import escape
from pathlib import Path

import pytest

from weft.pages.charts import Chart, Series
from weft.pages.report import write_report
from weft.runs.card import _cell
from weft.runs.layout import RunDir
from weft.runs.split_picture import INK, draw_split

ODD = [
    r"$\boxed{1}$",
    "$",
    "_x^2",
    "_",
    r"\frac{",
    "<b>&amp;",
    "שלום עולם",
    "日本病院",
    "a\x1b[31mb\x00",
    "\ud800",
    "x" * 5000,
    "",
    "a\nb",
    "\u202egnp.exe",
]
"""Labels and names that a picture's library, XML, HTML or a terminal would read otherwise."""
SHOWN = [
    r"$\boxed{1}$",
    "$",
    "_x^2",
    "_",
    r"\frac{",
    "<b>&amp;",
    "שלום עולם",
    "日本病院",
    r"a\x1b[31mb\x00",
    r"\ud800",
    "x" * 23 + "…",
    r"a\nb",
    r"\u202egnp.exe",
]


def split_of(names: list[str], labels: list[str]) -> dict[str, object]:
    clients = {
        name: {"rows": 3 * len(labels), "tokens": [3.0, 5.0, 9.0], "labels": [3] * len(labels)} for name in names
    }
    skew = {"size_gini": 0.0, "length_ks": 0.0, "length_ks_max": 0.0}
    return {"strategy": "clients", "clients": clients, "labels": labels, "skew": skew}


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


def test_the_picture_of_a_split_has_every_label_and_every_name_as_it_is():
    svg = draw_split(split_of(["clinic", "clinic b"], ODD))
    svg.encode()
    assert [label for label in SHOWN if label not in texts(svg)] == []
    svg = draw_split(split_of(ODD, ["yes", "no"]))
    names = [name for name in SHOWN if not name.startswith("x")] + ["x" * 27 + "…"]
    assert [name for name in names if name not in texts(svg)] == []
    assert 'fill="white"' in svg
    assert INK in svg


@pytest.mark.parametrize("label", SHOWN[:8])
def test_curves_of_metrics_with_any_name(label: str):
    curve = Series(label, [(1, 2.0), (2, 1.0)])
    figure = Chart(label, [curve], x_label=label, logarithmic=True).html()
    ET.fromstring(figure.replace("&ndash;", "-"))
    svg = figure[figure.index('<svg class="plot"') : figure.index("<output")]
    assert label in texts(svg)
    assert figure.count(f">{escape(label)}<") >= 3  # the caption, the legend and the table


def test_a_report_with_such_names_is_whole(tmp_path: Path):
    config = {"fed_alg": "fedavg", "model_name_or_path": "m", "num_rounds": 1, "dataset_name": "d"}
    with RunDir.create(tmp_path / "run", config, resume=False, overwrite=False, volatile=frozenset()) as run:
        run.split_file.write_text(json.dumps(split_of(ODD, ODD)))
        failures = dict.fromkeys(ODD, ODD[0])
        entry = {"event": "round", "round": 1, "clients": ODD, "train_loss": 1.0, "failures": failures}
        run.metrics_file.write_text(json.dumps(entry) + "\n")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert page.count("<svg") == page.count("</svg>")
    assert "&lt;b&gt;&amp;amp;" in page
    assert "<b>" not in page
    assert not any(letter in page for letter in "\x00\x1b\u202e")


@pytest.mark.parametrize("text", ODD)
def test_no_text_ends_the_cell_or_the_line_of_a_table_of_a_card(text: str):
    made = _cell(f"| {text}")
    assert made.isprintable()
    assert made.count("|") == made.count("\\|") == 1
    made.encode()

"""A study's page: means, paired differences, and no entry without a cell."""

import json
from dataclasses import replace

import pytest

from ssdd.config import preset
from ssdd.report import write_page
from ssdd.report.page import read_plan_cells, realism_points
from ssdd.studies import Plan, Row


def row(name, source, seeds=3):
    return Row(name, source, preset("cifar10-cpu"), seeds)


@pytest.fixture
def plan():
    rows = (row("random + teacher", "random"), row("k-means", "k-means"), row("KRR-ST", "krr-st"), row("T", "teacher"))
    return Plan("A study", rows)


def put(folder, row, seed, name="source", error=None, accuracy=50.0, **more):
    cell = {"row": row, "seed": seed, "set": name, "error": error, "finetuned": 33.0, "inputs": {}}
    cell |= {"probes": {"features/5": 20.0, "features/0": accuracy}, **more}
    with (folder / "cells.jsonl").open("a") as file:
        for line in ({"row": row, "settings": {}}, cell):
            file.write(json.dumps(line) + "\n")


def lines(folder, plan):
    return write_page(plan, folder).read_text().splitlines()


def columns(line):
    return [part.strip() for part in line.strip("|").split("|")]


def test_means_pairs_and_what_is_missing(tmp_path, plan):
    pool = {"steps": 1200, "loss": 0.02, "untrained_share": 0.965, "mean_age": 0.7, "cpu_seconds": 60.0}
    for seed, (theirs, ours) in enumerate([(0.5, 0.4), (0.6, 0.5), (0.7, 0.6)]):
        put(tmp_path, "random + teacher", seed, error=theirs, accuracy=50 + seed)
        put(tmp_path, "KRR-ST", seed, error=ours, accuracy=50.5 + seed * 3, distillation=pool)
    put(tmp_path, "random + teacher", 1, "Cars", accuracy=10.0)
    page = lines(tmp_path, plan)
    table = {columns(line)[0]: columns(line) for line in page[: page.index("## Cars")] if line.startswith("| ")}
    assert table["row"][1:] == [
        "representation error",
        "probe, 5 per class",
        "probe, all labels",
        "fine-tuned, 10% of the labels",
    ]
    assert table["random + teacher"][1] == "0.600 ± 0.058" and table["KRR-ST"][3] == "53.5 ± 1.7"
    assert table["k-means"][1:] == ["missing"] * 4
    cars = {columns(line)[0]: columns(line) for line in page[page.index("## Cars") :] if line.startswith("| ")}
    assert "(1 of 3)" in page[page.index("## Cars") + 4] and cars["T"][1] == "missing"
    against = [columns(line) for line in page if line.startswith(("| KRR-ST | random", "| KRR-ST | k-means"))]
    assert against[0][:3] == ["KRR-ST", "random + teacher", "**+0.100 ± 0.000** (n = 3), 16.7%"]
    assert against[0][3] == "**+2.5 ± 2.3** (n = 3)" and against[0][4] == "missing"
    assert against[1][2] == "missing"
    assert "| KRR-ST | 2 | 50 | 12.0 | 96.5 ± 0.0 | 0.7 ± 0.0 |  | 1200 ± 0 | 0.0200 ± 0.0000 | 1.0 ± 0.0 |" in page


def test_one_seed_has_no_standard_error_and_a_loss_is_marked_too(tmp_path, plan):
    pool = {"steps": 9, "loss": 0.1, "untrained_share": 0.0, "mean_age": 1.0, "cpu_seconds": 6.0}
    put(tmp_path, "random + teacher", 0, error=0.5)
    put(tmp_path, "KRR-ST", 0, error=0.6, distillation=pool)
    assert any("| -0.100 (one seed), -20.0% |" in line for line in lines(tmp_path, plan))
    put(tmp_path, "random + teacher", 1, error=0.6)
    put(tmp_path, "KRR-ST", 1, error=0.71, distillation=pool)
    assert any("| **-0.105 ± 0.010** (n = 2), -19.1% |" in line for line in lines(tmp_path, plan))


def test_a_row_is_compared_with_the_row_that_it_names(tmp_path, plan):
    assert "## Against other rows" not in lines(tmp_path, plan)
    named = replace(row("cosine", "krr-st"), against="KRR-ST")
    plan = Plan("Options", (*plan.rows, named))
    pool = {"steps": 9, "loss": 0.1, "untrained_share": 0.0, "mean_age": 1.0, "cpu_seconds": 6.0}
    for seed, (plain, cosine) in enumerate([(0.4, 0.3), (0.5, 0.4)]):
        put(tmp_path, "KRR-ST", seed, error=plain, accuracy=60 + seed, distillation=pool)
        put(tmp_path, "cosine", seed, error=cosine, accuracy=59 + seed, distillation=pool)
    put(tmp_path, "KRR-ST", 2, error=9.0, distillation=pool)  # no pair
    page = lines(tmp_path, plan)
    table = page[page.index("## Against other rows") :]
    assert columns(table[4])[2:] == [
        "representation error",
        "source, probe with 5 per class",
        "source, probe with all labels",
    ]
    assert columns(table[6])[:3] == ["cosine", "KRR-ST", "**+0.100 ± 0.000** (n = 2), 22.2%"]
    assert columns(table[6])[3:] == ["+0.0 ± 0.0 (n = 2)", "**-1.0 ± 0.0** (n = 2)"]


def test_what_realism_costs_is_drawn_from_rows_that_differ_by_it_alone(tmp_path, plan):
    def changed(name, **changes):
        settings = preset("cifar10-cpu")
        return Row(name, "krr-st", replace(settings, distill=replace(settings.distill, **changes)), 1)

    rows = (*plan.rows, changed("smooth", tv_weight=0.1), changed("both", tv_weight=0.1, ridge=0.5))
    plan = Plan("A study", rows)
    pool = {"steps": 9, "loss": 0.1, "untrained_share": 0.0, "mean_age": 1.0, "cpu_seconds": None}
    for name, error, variation in (("KRR-ST", 0.4, 0.2), ("smooth", 0.5, 0.1), ("both", 0.6, 0.05)):
        put(tmp_path, name, 0, error=error, distillation=pool | {"total_variation": variation})
    assert realism_points(plan, read_plan_cells(plan, tmp_path)) == [("KRR-ST", 0.2, 0.4), ("smooth", 0.1, 0.5)]
    assert "](realism.png)" in write_page(plan, tmp_path).read_text()
    assert (tmp_path / "realism.png").read_bytes().startswith(b"\x89PNG")


def test_no_picture_of_realism_if_no_row_is_constrained(tmp_path, plan):
    plan = Plan("Two teachers", (*plan.rows, row("KRR-ST, another teacher", "krr-st")))
    pool = {"steps": 9, "loss": 0.1, "untrained_share": 0.0, "mean_age": 1.0, "cpu_seconds": None}
    for name in ("KRR-ST", "KRR-ST, another teacher"):
        put(tmp_path, name, 0, error=0.4, distillation=pool | {"total_variation": 0.2})
    assert "realism" not in write_page(plan, tmp_path).read_text()


def test_words_around_the_tables_are_kept(tmp_path, plan):
    put(tmp_path, "random + teacher", 0, error=0.5)
    file = write_page(plan, tmp_path)
    text = file.read_text()
    file.write_text("# Mine\n\nBefore.\n" + text[text.index("<!--") :] + "\nAfter.\n")
    put(tmp_path, "random + teacher", 1, error=0.7)
    assert "0.600 ± 0.100 (2 of 3)" in write_page(plan, tmp_path).read_text()
    assert file.read_text().startswith("# Mine\n\nBefore.\n<!--") and file.read_text().endswith("\nAfter.\n")

"""What the examples share: the arms, the file of finished cells, and the tables made of them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from uses.arms import ARMS, FULL, K_MEANS, KRR_ST, NONE, RANDOM, Arms, Recipe
from uses.cells import Cells, Column, markdown, read_cells, replace_tables, tables

import ssdd

KEYS = [("digits", "vae", "none", n, seed) for n in (50, 200) for seed in range(10)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cells.jsonl"


def test_cells_are_read_as_they_were_written(file):
    cells = Cells(file, "digits", 1)
    assert cells.missing(KEYS) == KEYS
    cells.append(KEYS[0], {"nelbo": 1.23456789, "teacher": None})
    cells.append(KEYS[0], {"nelbo": 2.0})  # finished already: the first one stays
    (cell,) = cells.read().values()
    assert cell["nelbo"] == 1.234568 and cell["teacher"] is None and cell["arm"] == "none"
    assert cells.missing(KEYS) == KEYS[1:]


def test_a_line_without_an_end_is_computed_again(file):
    cells = Cells(file, "digits", 1)
    cells.append(KEYS[0], {"nelbo": 1.0})
    with file.open("a") as out:
        out.write('{"set":"digits","task":"va')
    assert cells.missing(KEYS[:2]) == KEYS[1:2]
    cells.append(KEYS[1], {"nelbo": 2.0})
    assert [json.loads(line)["nelbo"] for line in file.read_text().splitlines()] == [1.0, 2.0]


def test_several_writers_leave_one_line_per_cell(file):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: Cells(file, "digits", 1).append(key, {"nelbo": 1.0}), KEYS * 4))
    assert len(file.read_text().splitlines()) == len(KEYS) == len(read_cells(file))


def test_cells_of_other_settings_are_refused(file):
    Cells(file, "digits", 1).append(KEYS[0], {"nelbo": 1.0})
    Cells(file, "fashion", 2)  # another set may have its own
    with pytest.raises(ValueError, match="expected cells of digits with the settings"):
        Cells(file, "digits", 2)


def test_tables_pair_the_seeds(file):
    cells = Cells(file, "digits", 1)
    values = {"none": (1.0, 2.0, 6.0), "KRR-ST": (2.0, 4.0, 9.0), "k-means": (7.0,), "random": (0.0, 0.0)}
    for arm, found in values.items():
        for seed, value in enumerate(found):
            cells.append(("digits", "vae", arm, 50, seed), {"nelbo": value})
    column = Column("50 images", "vae", 50, "nelbo", 2)
    arms = ("none", "KRR-ST", "k-means", "absent")
    lines = tables(cells.read(), "digits", [column], arms, [("KRR-ST", "none"), ("absent", "none")])
    # s = sqrt(7), 7, so the standard errors are sqrt(7/3) = 1.53 and sqrt(13/3) = 2.08; one seed has none
    assert lines[2:5] == ["| none | 3.00 ± 1.53 |", "| KRR-ST | 5.00 ± 2.08 |", "| k-means | 7.00 |"]
    # differences 1, 2, 3: mean 2, standard error 1/sqrt(3)
    assert lines[5:] == ["", "| difference | 50 images |", "| --- | --- |", "| KRR-ST − none | +2.00 ± 1.15 |", ""]
    assert column.difference(cells.read(), "digits", "k-means", "none") == "+6.00"
    assert column.mean(cells.read(), "digits", "random") == "0.00 ± 0.00"
    for seed, value in enumerate((1.0, 2.0, 3.0, 2.0, 2.0)):  # five seeds: bold if it exceeds two standard errors
        cells.append(("digits", "vae", "b", 50, seed), {"nelbo": value})
        cells.append(("digits", "vae", "a", 50, seed), {"nelbo": 0.0})
        cells.append(("digits", "vae", "c", 50, seed), {"nelbo": 2.0})
    assert column.difference(cells.read(), "digits", "b", "a") == "**+2.00 ± 0.63**"
    assert column.difference(cells.read(), "digits", "b", "c") == "+0.00 ± 0.63"
    assert Column("", "vae", 50, "nelbo", 0, 100).mean(cells.read(), "digits", "k-means") == "700"


def test_a_page_keeps_what_is_around_its_tables(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- from the cells: begin -->\nold\n<!-- from the cells: end -->\nb\n")
    replace_tables(page, markdown(["arm", "x"], [["none", "1"], ["KRR-ST", ""]]))
    assert markdown(["arm", "x"], [["KRR-ST", ""]]) == []
    assert "old" not in page.read_text()
    assert page.read_text().startswith("a\n") and page.read_text().endswith("\nb\n")
    assert "| none | 1 |\n" in page.read_text() and "KRR-ST" not in page.read_text()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected"):
        replace_tables(page, [])


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    preset = ssdd.preset("digits")
    recipe = Recipe(
        "convnet-8-16",
        replace(preset.teacher, widths=(8, 16), epochs=1, projector=16),
        replace(preset.distill, images=6, steps=2, pool=1, batch=32, pool_steps=3),
        replace(preset.pretrain, steps=2, lr=0.05),
    )
    return Arms(ssdd.load_images("digits"), recipe, tmp_path_factory.mktemp("arms"))


def test_targets_have_one_scale_and_their_own_shape(arms):
    train, test = arms.targets
    known = ssdd.represent(arms.teacher, arms.data)
    assert float(train.square().mean()) == pytest.approx(1) and float(train.mean(0).abs().max()) < 1e-4
    # one shift per number and one factor for all: distances between images keep their proportions
    ratio = torch.cdist(train[:9], test[:9]) / torch.cdist(known.train[:9], known.test[:9])
    assert float(ratio.std() / ratio.mean()) < 1e-3


def test_arms_have_the_pairs_that_their_name_says(arms):
    train = arms.targets[0]
    assert arms.pairs(NONE, 0) is None
    assert len(arms.pairs(FULL, 0)) == len(train)
    for arm in (RANDOM, K_MEANS):
        pairs = arms.pairs(arm, 0)
        rows = torch.cdist(pairs.targets, train).argmin(1)
        assert len(set(rows.tolist())) == 6 and torch.equal(pairs.targets, train[rows])
        assert torch.equal(pairs.images, arms.data.x_train[rows].permute(0, 3, 1, 2) / 255)
    distilled = arms.pairs(KRR_ST, 0)
    assert len(distilled) == 6 and not torch.equal(distilled.images, arms.pairs(RANDOM, 0).images)


def test_a_distilled_set_is_read_again_and_not_made_again(arms):
    first = arms.pairs(KRR_ST, 0)
    marked = replace(first, images=first.images + 1)
    (file,) = arms.folder.glob("distilled-*.safetensors")
    marked.save(file)
    again = Arms(arms.data, arms.recipe, arms.folder)
    assert torch.equal(again.pairs(KRR_ST, 0).images, marked.images)
    first.save(file)


def test_encoders_of_a_seed_start_from_the_same_weights(arms):
    starts = {arm: ssdd.seeded(arms.make, 0).head.weight for arm in ARMS}
    assert all(torch.equal(start, starts[NONE]) for start in starts.values())
    assert torch.equal(arms.encoder(NONE, 0).head.weight, starts[NONE])
    trained = arms.encoder(RANDOM, 0)
    assert not torch.equal(trained.head.weight, starts[NONE]) and not trained.training
    assert arms.error(NONE, 0) is None and 0 < arms.error(RANDOM, 0) < 10

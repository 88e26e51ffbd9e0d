"""The example of generative models: its scores and models against their formulas, and a miniature of the whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from generative import flow, run, scores
from generative.vae import Vae, fit_vae, measure_vae
from uses.arms import KRR_ST, NONE, Arms
from uses.cells import Cells, read_cells

import ssdd

PAGE = Path("docs/results/generative/README.md")


def test_frechet_distance_is_its_formula():
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(40, 5, generator=g), 2 * torch.randn(50, 5, generator=g) + 1
    (m_x, c_x), (m_y, c_y) = ((p.double().numpy().mean(0), np.cov(p.double().numpy().T)) for p in (x, y))
    expected = ((m_x - m_y) ** 2).sum() + np.trace(c_x + c_y - 2 * scipy.linalg.sqrtm(c_x @ c_y).real)
    assert scores.frechet(x, y) == pytest.approx(expected, rel=1e-6)
    assert scores.frechet(x, x) == pytest.approx(0, abs=1e-6)
    flat = torch.cat([x, x[:, :1]], 1)  # a singular covariance
    assert scores.frechet(flat, flat) == pytest.approx(0, abs=1e-5)


def test_density_and_coverage_are_their_formulas():
    g = torch.Generator().manual_seed(3)
    real, made, k = torch.randn(30, 3, generator=g), 1.5 * torch.randn(40, 3, generator=g), 4
    radius = [sorted(float((a - b).norm()) for b in real)[k] for a in real]
    inside = [[float((a - b).norm()) < r for b in made] for a, r in zip(real, radius, strict=True)]
    density = sum(map(sum, inside)) / k / len(made)
    coverage = sum(map(any, inside)) / len(real)
    assert scores.density_and_coverage(made, real, k) == pytest.approx((density, coverage))
    assert scores.density_and_coverage(made + 100, real, k) == (0, 0)


@pytest.fixture(scope="module")
def digits():
    return ssdd.load_images("digits")


@pytest.fixture(scope="module")
def pixels(digits):
    return digits.x_train[:40].permute(0, 3, 1, 2).float() / 255


def test_the_bound_is_reconstruction_and_divergence(digits, pixels):
    network = ssdd.seeded(lambda: ssdd.build("convnet-8", 1, (8, 8), 1), 0)
    vae = ssdd.seeded(lambda: Vae(network.backbone, network.dimension, digits.preprocessing, (1, 8, 8), 3), 0).eval()
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    mean, log_variance = vae.encode(pixels)
    code = torch.distributions.Normal(mean, (log_variance / 2).exp())
    logits = vae.decode(mean + noise * code.stddev)
    likelihood = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(pixels).sum((1, 2, 3))
    divergence = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(vae.bound(pixels, noise), divergence - likelihood)


def test_a_vae_learns_and_leaves_its_network_alone(digits, pixels):
    network = ssdd.seeded(lambda: ssdd.build("convnet-8", 1, (8, 8), 1), 0).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    few, many = (measure_vae(fit_vae(network, digits, pixels, steps, seed=0), pixels) for steps in (1, 40))
    assert many["nelbo"] < few["nelbo"] - 3 and many["error"] < few["error"]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_aligning_turns_the_middle_to_the_targets_only(digits, pixels):
    x, targets = digits.preprocessing.normalise(pixels), torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    model = flow.new_flow(1, 6, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def cosine():
        middle = model.middle(x, torch.ones(40)).mean((2, 3))
        return torch.cosine_similarity(model.project(middle), targets).mean().item()

    first = cosine()
    flow.align(model, x, targets, steps=40, seed=0)
    assert cosine() > first + 0.1
    changed = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"enter", "before", "project"}


def test_a_flow_learns_the_velocity_and_samples_follow_it(digits, pixels):
    x = digits.preprocessing.normalise(pixels)
    model = flow.new_flow(1, 6, 0)

    def loss():
        point, t, velocity = flow.between(x, torch.Generator().manual_seed(5))
        torch.testing.assert_close(point + (1 - t)[:, None, None, None] * velocity, x)  # the straight path ends at x
        return (model(point, t) - velocity).square().mean().item()

    first = loss()
    flow.fit(model, x, steps=30, seed=0)
    assert loss() < 0.8 * first
    start = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        half = start + model(start, torch.zeros(3)) / 2
        end = half + model(half, torch.full((3,), 0.5)) / 2
    torch.testing.assert_close(flow.sample(model, (3, 1, 8, 8), 2, seed=7), end)


def test_a_miniature_fills_every_cell_and_goes_on(digits, tmp_path):
    sizes = run.Sizes((30,), 2, 2, 2, 1, 60, 1)
    recipe = run.RECIPES["digits"]
    recipe = replace(
        recipe,
        student="convnet-8",
        teacher=replace(recipe.teacher, epochs=1, widths=(8, 16), projector=16),
        distill=replace(recipe.distill, images=8, steps=2, pool=1, batch=32, pool_steps=3),
        pretrain=replace(recipe.pretrain, steps=2, lr=0.05),
    )
    cells = Cells(tmp_path / "cells.jsonl", "digits", (sizes, recipe))
    output = []
    example = run.Generative(Arms(digits, recipe, tmp_path, output.append), sizes, cells)
    keys = example.keys(0)
    example.fill(0)
    found = cells.read()
    assert set(found) == set(keys) and len(keys) == 5 * 2 + 4 + 1
    for (_, task, arm, *_), cell in found.items():
        measures = ("nelbo", "error") if task == run.VAE else ("frechet", "density", "coverage")
        assert all(np.isfinite(cell[name]) for name in measures), (task, arm)
    assert found["digits", run.VAE, NONE, 30, 0]["nelbo"] != found["digits", run.VAE, KRR_ST, 30, 0]["nelbo"]
    # a cell that is lost is computed again, to the same values
    lines = cells.file.read_text().splitlines(keepends=True)
    cells.file.write_text("".join(lines[:-2]))
    output.clear()
    run.Generative(Arms(digits, recipe, tmp_path, output.append), sizes, cells).fill(0)
    assert cells.read() == found and sum("digits, seed 0" in line for line in output) <= 3
    run.draw_samples(tmp_path, "digits", 30, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 500


def test_the_page_has_the_tables_of_its_cells(root, tmp_path):
    page, cells = root / PAGE, read_cells((root / PAGE).with_name("cells.jsonl"))
    assert cells
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text())
    run.write_page(copy, cells, run.Sizes(), list(run.RECIPES))
    assert copy.read_text() == page.read_text()

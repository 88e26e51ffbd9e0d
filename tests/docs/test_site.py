"""The documentation site builds without a warning, and its content agrees with the code."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssdd
import ssdd_ext
import ssdd_ext.nn
import ssdd_ext.sklearn
from ssdd.config import PRESETS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if importlib.util.find_spec("mkdocs") is None and os.environ.get("SSDD_TEST_INSTALLED") != "1":
        pytest.skip("NO MKDOCS HERE: the documentation site was not built (pip install '.[docs]')")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return out


def words(page: Path) -> str:
    """Return the visible text of a page."""
    return html.unescape(re.sub(r"<[^>]+>", " ", page.read_text()))


def fields(settings, path=""):
    """Yield GROUP.FIELD and the value of every setting."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{path}{field.name}.")
        elif path:
            yield f"{path}{field.name}", value


@pytest.mark.parametrize("package", [ssdd_ext, ssdd_ext.nn, ssdd_ext.sklearn, ssdd])
def test_every_public_name_is_in_the_reference(site, package):
    text = (site / f"api-{package.__name__.split('.')[0].replace('_', '-')}.html").read_text()
    names = {name for name in package.__all__ if callable(getattr(package, name))}
    headings = set(re.findall(r'<span class="doc doc-object-name[^"]*">(\w+)</span>', text))
    assert names <= headings, names - headings
    assert not re.search(r":(func|class|meth):", text), "a role of reStructuredText is shown as it is"


def test_every_setting_is_in_the_table(site):
    text = (site / "settings.html").read_text()
    for key, value in fields(type(PRESETS["small"])("default")):
        group, _, name = key.rpartition(".")
        section = text.split(f'<h2 id="{group.replace(".", "")}">')[1].split("<h2 ")[0]
        shown = "-".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        row = re.search(rf"<td><code>{name}</code></td>\s*<td>.*?</td>\s*<td><code>([^<]*)</code></td>", section)
        assert row, key
        assert row[1].lower().replace(",", "") == shown.replace(",", ""), key


def test_published_values_are_those_of_the_presets(site):
    section = (site / "settings.html").read_text().split('<h2 id="distill">')[1].split("<h2 ")[0]
    row = re.search(r"<td><code>images</code></td>.*?</tr>", section, re.DOTALL)
    assert row
    assert "<code>2000</code> (tinyimagenet)" in row[0]
    row = re.search(r"<td><code>pool_counter</code></td>.*?</tr>", section, re.DOTALL)
    assert row and "the code: <code>stuck</code>" in row[0]


def test_generated_tables_are_on_the_site(site):
    assert "ratios are to the usual formulation" in words(site / "benchmarks.html")
    assert "NVIDIA H100" in words(site / "benchmarks-h100.html")
    assert "Add a data source" in words(site / "contributing.html")


def test_reasons_are_visible(site):
    assert "Not run by the tests: it needs nvcc." in words(site / "backend.html")


def test_formulas_are_marked_and_the_script_is_local(site):
    text = (site / "design.html").read_text()
    assert text.count('class="arithmatex"') > 20
    assert "$$" not in words(site / "design.html")
    assert (site / "assets" / "katex" / "katex.min.js").is_file()


def test_no_page_requests_anything_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        found = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)', text)
        found += re.findall(r'<link[^>]*rel="(?:stylesheet|icon|preconnect)"[^>]*href="(https?:[^"]+)', text)
        found += re.findall(r'<link[^>]*href="(https?:[^"]+)"[^>]*rel="(?:stylesheet|icon|preconnect)"', text)
        assert found == [], page.name

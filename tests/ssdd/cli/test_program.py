"""The program itself: output without loading torch, exit status, completion, and the choices of its options."""

import importlib.util
import re
import shutil
import subprocess
import sys
import typing

import pytest

import ssdd
from ssdd.cli import VERBS, completion, export, options

NO_TORCH = """
import sys
from ssdd.cli import main
sys.argv = ["ssdd", *{arguments!r}]
try:
    main()
except SystemExit as end:
    print("status", end.code or 0)
heavy = {{"torch", "numpy", "sklearn", "matplotlib", "PIL"}} & set(sys.modules)
print("loaded", sorted(heavy))
"""


@pytest.mark.parametrize(
    "arguments, status",
    [
        (["--help"], 0),
        (["distill", "--help"], 0),
        (["--version"], 0),
        (["distill", "--distill.speed=1"], 2),
        (["x"], 2),
        (["settings", "cifar100", "--distill.lr=0.1"], None),
        (["completion", "bash"], None),
    ],
)
def test_what_needs_no_torch_does_not_load_it(arguments, status):
    code = NO_TORCH.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert (f"status {status}" in done.stdout) == (status is not None)
    assert done.stderr.startswith("error: ") == (status == 2)


def test_importing_the_package_does_not_load_torch():
    code = "import sys, ssdd; assert 'torch' not in sys.modules; ssdd.load_images; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version(ssdd_command):
    assert ssdd_command("--version").stdout == f"ssdd {ssdd.__version__}\n"


def test_help_of_every_verb(ssdd_command):
    overview = ssdd_command("--help").stdout
    assert ssdd_command().stdout == overview
    for verb in VERBS:
        assert re.search(rf"^    {verb} ", overview, re.MULTILINE)
        assert len(ssdd_command(verb, "--help").stdout) > 150


def test_the_words_of_options_are_those_of_the_package():
    """The choices are repeated in the command line, so that it need not import torch to know them."""
    assert typing.get_args(options.Device) == ssdd.DEVICES
    assert typing.get_args(options.Share) == ssdd.PARALLEL_MODES
    assert set(typing.get_args(export.Form)) == set(ssdd.EXPORT_FORMS)


@pytest.mark.parametrize("shell", typing.get_args(completion.Shell))
def test_completion_is_a_script(ssdd_command, shell):
    script = ssdd_command("completion", shell).stdout
    assert "distill" in script and "pool_counter" in script


def test_completion_in_bash(ssdd_command, tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("NO BASH HERE: completion was not tried")
    (tmp_path / "complete.sh").write_text(ssdd_command("completion", "bash").stdout)
    found = {}
    for words in (["ssdd", "dis"], ["ssdd", "distill", "--distill.pool_c"], ["ssdd", "export", "--fo"]):
        script = (
            f"source {tmp_path / 'complete.sh'}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
            f"COMP_LINE='{' '.join(words)}'; COMP_POINT=${{#COMP_LINE}}; function=$(complete -p ssdd | sed 's/.*-F "
            '\\([^ ]*\\) .*/\\1/\'); $function ssdd; echo "${COMPREPLY[@]}"'
        )
        done = subprocess.run([bash, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[words[-1]] = done.stdout.split()
    assert found == {"dis": ["distill"], "--distill.pool_c": ["--distill.pool_counter"], "--fo": ["--form"]}


def test_the_benchmark_of_the_program_runs_every_command(root, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    spec = importlib.util.spec_from_file_location("bench_cli", root / "benchmarks" / "bench_cli.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rows = bench.main(["--quick", "--results", str(tmp_path)])
    assert [row["command"] for row in rows] == list(bench.COMMANDS) and not list(tmp_path.iterdir())
    assert all(row["seconds"]["median"] > 0 for row in rows)
    assert capsys.readouterr().out.count(" s (aim") == len(rows)
    with pytest.raises(RuntimeError, match="expected exit status 0, got 2"):
        bench.measure(["-m", "ssdd.cli", "distill", "--no-such"], 0, 2, 0.0)

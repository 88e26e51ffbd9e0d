"""Distil 1,000 images of CIFAR-10 at the published size, in parts of a few minutes on one GPU.

Each call does what fits in --seconds and leaves the rest to the next call: a ConvNet teacher (Barlow Twins, bfloat16),
then the study of `study.toml`, one more seed per call. OUT holds all that the next call needs: `teacher.safetensors`,
`settings.json`, `cells.jsonl` and, if a call was cut short, the folder `work`. Only whole cells count.

    python docs/results/scale/run.py DATA OUT --seconds 440 --seed 0

DATA holds cifar10.npz, flowers.npz and cars.npz (x_train, y_train, x_test, y_test). --fraction 0.01 runs the same steps
at one hundredth of the size on a CPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TEACHER_SHARE = 0.3
"""Share of the time of the first call that the teacher may take."""


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, help="folder with cifar10.npz, flowers.npz and cars.npz")
    p.add_argument("out", type=Path, help="folder of the results; a later call continues there")
    p.add_argument("--seconds", type=float, default=440.0, help="stop after this time")
    p.add_argument("--seed", type=int, default=0, help="compute the seeds up to this one")
    p.add_argument("--fraction", type=float, default=1.0, help="share of images and steps: 0.01 for a rehearsal")
    return p.parse_args()


def ssdd(*words: object, seconds: float) -> int:
    """Run a verb of the command line for at most ``seconds``; it is interrupted then, which keeps a checkpoint."""
    command = [sys.executable, "-m", "ssdd.cli", *map(str, words)]
    print("$", *command[2:], flush=True)
    process = subprocess.Popen(command)
    try:
        return process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        return 124


def smaller(source: Path, out: Path, fraction: float) -> Path:
    """Write the first images of each part of ``source``; return the file. A ``fraction`` of 1 is ``source`` itself."""
    if fraction == 1:
        return source
    with np.load(source) as found:
        arrays = {key: found[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    rows = {part: max(64, round(fraction * len(arrays[f"y_{part}"]))) for part in ("train", "test")}
    few = {key: values[: rows[key[2:]]] for key, values in arrays.items()}
    kept = np.intersect1d(few["y_train"], few["y_test"])  # fine-tuning needs the same classes in both parts
    for part in ("train", "test"):
        chosen = np.isin(few[f"y_{part}"], kept)
        few |= {f"{k}_{part}": few[f"{k}_{part}"][chosen] for k in "xy"}
    file = out / source.name
    np.savez(file, **few)
    return file


def make_teacher(data: Path, out: Path, seconds: float) -> None:
    """Train the teacher for about ``seconds``: the time of two one-epoch trainings gives the number of epochs."""
    file = out / "teacher.safetensors"
    if file.exists():
        return
    flags = [
        *("-d", data, "--preset", "small", "--teacher.widths", "64-128-256-512", "--teacher.batch", 512),
        *("--teacher.projector", 1024, "--teacher.training", "bf16", "--teacher.augment.grayscale", 0.05),
    ]
    took = []
    for epochs in (1, 3):
        begin = time.perf_counter()
        trial = ("-o", out / "trial.safetensors", "--overwrite", "--teacher.epochs", epochs)
        if ssdd("teacher", *flags, *trial, seconds=seconds):
            raise SystemExit("the teacher's trial training failed")
        took.append(time.perf_counter() - begin)
    epoch = max((took[1] - took[0]) / 2, 1e-3)
    epochs = max(1, int((seconds - sum(took)) / epoch))
    ssdd("teacher", *flags, "-o", file, "--teacher.epochs", epochs, seconds=10 * seconds)
    (out / "trial.safetensors").unlink(missing_ok=True)


def plan(out: Path, seed: int, fraction: float) -> Path:
    """Write the study's file with the seeds up to ``seed``; with a ``fraction``, of few steps."""
    text = (HERE / "study.toml").read_text().replace("seeds = 1", f"seeds = {seed + 1}")
    if fraction != 1:
        for name, value in (("distill.images", 1000), ("distill.steps", 12000), ("pretrain.steps", 4000)):
            few = max(12, round(fraction * value))
            text = text.replace(f'"{name}" = {value}\n', f'"{name}" = {few}\n')
        text = text.replace('"finetune.steps" = 1000\n', f'"finetune.steps" = {max(5, round(1000 * fraction))}\n')
    file = out / "study.toml"
    file.write_text(text)
    return file


def main() -> int:
    a = arguments()
    deadline = time.perf_counter() + a.seconds
    a.out.mkdir(parents=True, exist_ok=True)
    settings = a.out / "settings.json"
    if settings.exists() and json.loads(settings.read_text())["fraction"] != a.fraction:
        raise SystemExit(f"{a.out} was begun with --fraction {json.loads(settings.read_text())['fraction']}")
    settings.write_text(json.dumps({"fraction": a.fraction}) + "\n")
    sets = {name: smaller(a.data / f"{name}.npz", a.out, a.fraction) for name in ("cifar10", "flowers", "cars")}
    make_teacher(sets["cifar10"], a.out, TEACHER_SHARE * a.seconds)
    done = ssdd(
        *("study", plan(a.out, a.seed, a.fraction), "-o", a.out, "-d", sets["cifar10"]),
        *("-t", a.out / "teacher.safetensors", "--work", a.out / "work"),
        *("--target", f"Flowers={sets['flowers']}", "--target", f"Cars={sets['cars']}"),
        seconds=deadline - time.perf_counter() - 5,
    )
    print("all cells are there" if done == 0 else "not finished: the same command continues", flush=True)
    return done


if __name__ == "__main__":
    sys.exit(main())

"""Search for a setting with room: where pre-training on the full set reads out better than on a few random images.

Trains a teacher on CIFAR-10's training images by Barlow Twins for a given time, then pre-trains students on its
representations of random images and of the full set, and reads them out on held-out source images and on other sets.
One line of JSON per row. Made for one GPU and a few minutes; the last 2,000 training images are held out, the test set
is not touched.

    python docs/results/room/search.py DATA OUT --teacher-seconds 120 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import ssdd
import ssdd_ext
from ssdd_ext import Linear, Ridge

HELD_OUT = 2000
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


def read_set(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (uint8 [N, H, W, C]) and labels from 0 without gaps."""
    sys.path.insert(0, str(folder))
    import datapack

    found = datapack.load(name, str(folder))
    x, y = found["x_train"], np.asarray(found["y_train"]).astype(np.int64)
    if "x_test" not in found:
        x, x_test, y, y_test = x[:-HELD_OUT], x[-HELD_OUT:], y[:-HELD_OUT], y[-HELD_OUT:]
    else:
        x_test, y_test = found["x_test"], np.asarray(found["y_test"]).astype(np.int64)
    classes = np.unique(np.concatenate([y, y_test]))
    labels = [torch.from_numpy(np.searchsorted(classes, part)) for part in (y, y_test)]
    return torch.from_numpy(x), labels[0], torch.from_numpy(x_test), labels[1]


def batches(f, images: Tensor, preprocessing, device: torch.device) -> Tensor:
    """``f`` of the normalised images, float32 [N, D] on ``device``."""
    parts = []
    with torch.no_grad():
        for part in images.split(1000):
            parts.append(f(preprocessing(part.to(device))).float())
    return torch.cat(parts)


def probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Accuracy of ridge regression to one-hot labels on standardised features; the ridge chosen on a fifth of x."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = ((t - mean) / std for t in (x, x_test))
    one_hot = torch.nn.functional.one_hot(y, int(max(y.max(), y_test.max())) + 1).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    fitting, choosing = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]

    def accuracy(rows: Tensor, ridge: float, asked: Tensor, right: Tensor) -> float:
        fitted = ssdd_ext.fit(x[rows], one_hot[rows], kernel=Linear(bias=1.0), ridge=Ridge.mean_trace(ridge))
        return float((fitted.predict(asked).argmax(1) == right).float().mean())

    best = max(RIDGES, key=lambda r: accuracy(fitting, r, x[choosing], y[choosing]))
    return accuracy(order, best, x_test, y_test)


def train(data, device: torch.device, seconds: float, out: Path, backbone: str, report) -> ssdd.Teacher:
    """A teacher trained for about ``seconds``: the number of epochs follows from the time of the first."""
    config = replace(
        ssdd.preset("small").teacher,
        backbone=backbone,
        training="bf16" if device.type == "cuda" else "float32",
        batch=512,
        projector=1024,
    )
    config = replace(config, augment=replace(config.augment, scale=0.35, shift=0.2))
    begin = time.perf_counter()
    ssdd.train_teacher(data, replace(config, epochs=1), device=device)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    ssdd.train_teacher(data, replace(config, epochs=1), device=device)
    epoch = time.perf_counter() - begin
    epochs = max(1, math.floor((seconds - first - epoch) / epoch))
    losses = []
    begin = time.perf_counter()
    teacher = ssdd.train_teacher(
        data, replace(config, epochs=epochs), lambda event: losses.append(round(event["loss"], 2)), device=device
    )
    report(
        {
            "row": "teacher",
            "backbone": backbone,
            "epochs": epochs,
            "seconds": round(time.perf_counter() - begin, 1),
            "epoch_seconds": round(epoch, 2),
            "losses": losses[:: max(1, len(losses) // 10)],
        }
    )
    path = teacher.save(out / "teacher-float32.safetensors")
    return ssdd.Teacher.load(path).to(device)


def save_half(teacher: ssdd.Teacher, out: Path) -> None:
    """The teacher's file with its weights in float16: ``Teacher.load`` reads it."""
    from safetensors import safe_open

    with safe_open(out / "teacher-float32.safetensors", "pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no dict)
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(half, out / "teacher.safetensors", metadata=meta)
    (out / "teacher-float32.safetensors").unlink()


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, help="folder with the packed sets and datapack.py")
    p.add_argument("out", type=Path, help="folder for search.jsonl and teacher.safetensors")
    p.add_argument("--teacher-seconds", type=float, default=120.0)
    p.add_argument("--seconds", type=float, default=60.0, help="no new student row after this")
    p.add_argument("--backbone", default="resnet10")
    p.add_argument("--targets", default="flowers102_32,cars_32")
    p.add_argument("--teacher", help="read this teacher, train none")
    p.add_argument("--students", default="convnet-32-64-128,convnet-128-256-512")
    p.add_argument("--steps", default="300,2500", help="pre-training steps")
    p.add_argument("--small", type=int, default=0, help="keep so many training images: shows that the script runs")
    a = p.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a.out.mkdir(parents=True, exist_ok=True)

    def report(row: dict) -> None:
        with (a.out / "search.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:400], flush=True)

    keep = slice(0, a.small or None)
    x, y, x_test, y_test = read_set(a.data, "cifar10")
    x, y = x[keep], y[keep]
    images = ssdd.ImageSet("cifar10", x, x_test, y, y_test)
    sets = {"source": (x, y, x_test, y_test)}
    for name in a.targets.split(",") if a.targets else ():
        xt, yt, xs, ys = read_set(a.data, name)
        sets[name] = (xt[keep], yt[keep], xs[keep], ys[keep])
    pre = images.preprocessing
    teacher = (
        ssdd.Teacher.load(a.teacher).to(device)
        if a.teacher
        else train(images, device, a.teacher_seconds, a.out, a.backbone, report)
    )
    if not a.teacher:
        save_half(teacher, a.out)
        teacher = ssdd.Teacher.load(a.out / "teacher.safetensors").to(device)

    def read_out(f) -> dict[str, float]:
        found = {}
        for name, (xt, yt, xs, ys) in sets.items():
            f_t, f_s = (batches(f, part, pre, device) for part in (xt, xs))
            found[name] = round(100 * probe(f_t, yt.to(device), f_s, ys.to(device)), 2)
        return found

    report({"row": "teacher's representations", "probe": read_out(teacher)})
    wanted = batches(teacher, x, pre, device)
    wanted_test = batches(teacher, x_test, pre, device)
    variance = (wanted_test - wanted_test.mean(0)).square().sum()
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    for student in a.students.split(","):
        for steps in map(int, a.steps.split(",")):
            for count in (0, 500, 1000, len(x)):
                for lr in (0.02, 0.1) if count else (0.1,):
                    if time.perf_counter() - begin > a.seconds:
                        return 0
                    torch.manual_seed(0)
                    network = ssdd.build(student, 3, tuple(x.shape[1:3]), wanted.shape[1]).to(device)
                    row = {"row": "student", "student": student, "steps": steps, "images": count, "lr": lr}
                    if count:
                        chosen = order[:count]
                        pixels = x[chosen].permute(0, 3, 1, 2).float() / 255
                        pairs = ssdd.DistilledSet(pixels, wanted.cpu()[chosen], pre)
                        fields = {f for f in ssdd.preset("small").pretrain.__dataclass_fields__}
                        rate = "lr" if "lr" in fields else "rate"
                        config = replace(ssdd.preset("small").pretrain, steps=steps, **{rate: lr})
                        try:
                            ssdd.pretrain(network, pairs, config)
                        except ssdd.Diverged as error:
                            report(row | {"diverged": str(error)[:100]})
                            continue
                        predicted = batches(network, x_test, pre, device)
                        row["error"] = round(float((predicted - wanted_test).square().sum() / variance), 4)
                    network.eval()
                    report(row | {"probe": read_out(network.features)})
    return 0


if __name__ == "__main__":
    sys.exit(main())

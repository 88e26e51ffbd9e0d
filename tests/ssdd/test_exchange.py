"""Distilled sets in other tools' forms, through the program; and files whose content does not match their form."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.artifact import DistilledSet, Preprocessing, export, read_labelled, read_published
from ssdd.config import InputError

PRE = Preprocessing((0.4, 0.5, 0.1), (0.2, 0.3, 0.25))


def example(channels=3, **changes) -> DistilledSet:
    g = torch.Generator().manual_seed(0)
    pre = PRE if channels == 3 else Preprocessing((0.4,), (0.2,))
    images = torch.rand(6, channels, 8, 8, generator=g) * 1.2 - 0.1
    return DistilledSet(images, torch.randn(6, 4, generator=g), pre, source="somewhere", **changes)


def test_it_is_a_torch_dataset():
    pairs = example()
    assert isinstance(pairs, torch.utils.data.Dataset) and len(pairs) == 6
    x, y = next(iter(torch.utils.data.DataLoader(pairs, batch_size=6)))
    assert torch.equal(x, pairs.inputs()) and torch.equal(y, pairs.targets)
    assert torch.equal(example(support_input="raw")[2][0], pairs.images[2])
    assert len(list(pairs)) == 6 and torch.equal(pairs[-1][1], pairs.targets[-1])
    with pytest.raises(IndexError):
        pairs[6]


@pytest.mark.parametrize("channels", [1, 3])
def test_export_to_a_folder(ssdd_command, tmp_path, channels):
    pairs = example(channels)
    printed = ssdd_command("export", pairs.save(tmp_path / "a.safetensors"), "-o", tmp_path / "out").output
    assert "values clipped" in printed
    pictures = sorted((tmp_path / "out" / "images").iterdir())
    assert [p.name for p in pictures] == [f"{i:05d}.png" for i in range(6)]
    seen = np.asarray(Image.open(pictures[3])).astype(np.float32) / 255
    expected = pairs.images[3].permute(1, 2, 0).clamp(0, 1).numpy().squeeze()
    assert np.abs(seen - expected).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(np.load(tmp_path / "out" / "targets.npy"), pairs.targets.numpy())
    assert torch.equal(DistilledSet.load(tmp_path / "out" / "distilled.safetensors").images, pairs.images)
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert tuple(about["preprocessing"]["mean"]) == pairs.preprocessing.mean
    again = ssdd_command("export", tmp_path / "a.safetensors", "-o", tmp_path / "out", fails=True)
    assert "exists" in str(again.exception)


def test_the_cost_of_eight_bits_is_printed(tmp_path):
    pairs = example()
    cost = export(pairs, tmp_path / "out")
    outside = float(((pairs.images < 0) | (pairs.images > 1)).float().mean())
    assert cost["clipped"] == pytest.approx(outside) and 0.05 < cost["largest_change"] <= 0.11


def test_export_to_a_huggingface_set(ssdd_command, tmp_path):
    pairs = example()
    ssdd_command("export", pairs.save(tmp_path / "a.safetensors"), "-o", tmp_path / "out", "--form", "huggingface")
    rows = [json.loads(line) for line in (tmp_path / "out" / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [r["file_name"] for r in rows] == [f"{i:05d}.png" for i in range(6)]
    assert torch.equal(torch.tensor([r["target"] for r in rows]), pairs.targets)
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")
    hub = pytest.importorskip(
        "datasets", reason="THE OPTIONAL LIBRARY `datasets` IS NOT HERE: it did not read the export"
    )
    read = hub.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(read) == 6 and torch.equal(torch.tensor(read["target"][:]), pairs.targets)
    assert np.array_equal(
        np.asarray(read[2]["image"]), np.asarray(Image.open(tmp_path / "out" / "train" / "00002.png"))
    )


def test_export_to_ddranking(ssdd_command, tmp_path):
    pairs, file = example(), example().save(tmp_path / "a.safetensors")
    scores = torch.eye(3)[[2, 0, 1, 0, 2, 1]] * 5 + torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "scores.npy", scores.numpy())
    given = ("-o", tmp_path / "out", "--form", "ddranking", "--labels", tmp_path / "scores.npy")
    assert "normalises CIFAR: mean (0.4914," in ssdd_command("export", file, *given).output
    images, labels, rate = (
        torch.load(tmp_path / "out" / f"{n}.pt", weights_only=True) for n in ("images", "labels", "lr")
    )
    order = [1, 3, 2, 5, 0, 4]
    by_channel = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}  # of its utils/data.py
    mean, std = (torch.tensor(by_channel[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(images, (pairs.images[order] - mean) / std)
    assert torch.equal(labels, scores[order]) and rate.dim() == 0
    assert labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    labelled = example(target_kind="labels")
    labelled.targets = scores
    export(labelled, tmp_path / "own", "ddranking")
    assert torch.equal(torch.load(tmp_path / "own" / "labels.pt", weights_only=True), scores[order])


def test_export_of_raw_and_of_large_sets_to_ddranking(ssdd_command, tmp_path):
    scores = torch.eye(3)[[0, 0, 1, 1, 2, 2]]
    raw = example(support_input="raw", target_kind="labels")
    raw.targets = scores
    printed = ssdd_command(
        "export", raw.save(tmp_path / "raw.safetensors"), "-o", tmp_path / "raw", "--form", "ddranking"
    )
    assert "raw set" in printed.output
    # A real image that the set's own constants normalise to these inputs has the same place under ddranking's.
    pixels = raw.images * torch.tensor(PRE.std)[:, None, None] + torch.tensor(PRE.mean)[:, None, None]
    expected = (pixels[0, 1] - 0.4822) / 0.1994
    images = torch.load(tmp_path / "raw" / "images.pt", weights_only=True)
    torch.testing.assert_close(images[0, 1], expected)
    large = DistilledSet(torch.rand(3, 3, 40, 40).double(), torch.eye(3), PRE, target_kind="labels")
    export(large, tmp_path / "large", "ddranking")
    images = torch.load(tmp_path / "large" / "images.pt", weights_only=True)
    torch.testing.assert_close(images[2, 0], (large.images[2, 0].float() - 0.485) / 0.229)  # float32, as documented
    grey = DistilledSet(torch.rand(3, 1, 8, 8), torch.eye(3), Preprocessing((0.4,), (0.2,)), target_kind="labels")
    with pytest.raises(InputError, match="3 channels, got 1"):
        export(grey, tmp_path / "grey", "ddranking")


def test_exports_that_do_not_fit(ssdd_command, tmp_path):
    uneven = torch.eye(3)[[0, 0, 0, 0, 1, 2]]
    for form, labels, named in [
        ("ddranking", None, "representations; give labels"),
        ("ddranking", uneven, "same number.*1 to 4"),
        ("ddranking", uneven * float("nan"), "not finite"),
        ("ddranking", uneven[:2], r"floats \[6, classes\]"),
        ("folder", uneven, "only the form ddranking"),
        ("zip", None, "expected one of folder, huggingface, ddranking, compact"),
    ]:
        with pytest.raises(InputError, match=named):
            export(example(), tmp_path / "out", form, labels)
    with pytest.raises(InputError, match="images: values that are not finite"):
        export(DistilledSet(torch.full((1, 3, 4, 4), float("nan")), torch.rand(1, 5), PRE), tmp_path / "out")
    assert not list(tmp_path.iterdir())  # no incomplete file
    (tmp_path / "bad.npy").write_bytes(pickle.dumps([1]))
    file = example().save(tmp_path / "a.safetensors")
    printed = ssdd_command(
        "export", file, "-o", tmp_path / "o", "--form", "ddranking", "--labels", tmp_path / "bad.npy", fails=True
    )
    assert "bad.npy" in str(printed.exception) and "nothing in it was run" in str(printed.exception)
    assert "unsafely" not in str(printed.exception) and "allow_pickle" not in str(printed.exception)


def published(folder, x, y):
    torch.save(x, folder / "x_syn.pt")
    torch.save(y, folder / "y_syn.pt")
    return folder / "x_syn.pt", folder / "y_syn.pt"


def test_import_of_the_published_files(ssdd_command, tmp_path):
    pairs = example()
    x, y = published(tmp_path, torch.nn.Parameter(pairs.images), pairs.targets.double())
    ssdd_command("import", x, y, "-o", tmp_path / "a.safetensors", "--mean", "0.4,0.5,0.1", "--std", "0.2,0.3,0.25")
    made = DistilledSet.load(tmp_path / "a.safetensors")
    assert torch.equal(made.images, pairs.images) and torch.equal(made.targets, pairs.targets)
    assert made.preprocessing == PRE and made.support_input == "raw" and not made.images.requires_grad
    np.savez(tmp_path / "real.npz", x_train=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    ssdd_command("import", x, y, "-o", tmp_path / "b.safetensors", "-d", tmp_path / "real.npz")
    assert DistilledSet.load(tmp_path / "b.safetensors").source == "real"
    x, y = published(tmp_path, pairs.images, torch.tensor([0, 2, 1, 0, 2, 1]))  # the label-based baselines
    labels = read_published(x, y, PRE)
    assert labels.target_kind == "labels" and labels.targets.argmax(1).tolist() == [0, 2, 1, 0, 2, 1]


class Run:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


@pytest.mark.parametrize("how", ["torch.save", "pickle", "old torch.save", "module", "half a number"])
def test_a_hostile_pt_file_is_refused_and_nothing_runs(tmp_path, how):
    flag, (x, y) = str(tmp_path / "executed"), published(tmp_path, torch.rand(2, 3, 4, 4), torch.rand(2, 5))
    if how == "pickle":
        x.write_bytes(pickle.dumps(Run(flag)))
    elif how == "half a number":
        x.write_bytes(b"G\x00")
    else:
        old = how == "old torch.save"
        torch.save(
            torch.nn.Linear(2, 2) if how == "module" else [torch.rand(2), Run(flag)],
            x,
            _use_new_zipfile_serialization=not old,
        )
    with pytest.raises(InputError, match=r"x_syn\.pt: not a file of plain tensors .*nothing in it was run") as error:
        read_published(x, y, PRE)
    assert "weights_only" not in str(error.value)  # torch's advice to load it without the check
    assert not os.path.exists(flag)
    if how == "torch.save":  # without the restriction it runs, so this test can fail
        torch.load(x, weights_only=False)
        assert os.path.exists(flag)


@pytest.mark.parametrize(
    "x, y, named",
    [
        (torch.rand(2, 3, 4, 4), {"y": torch.rand(2)}, "y_syn.pt: expected one tensor, got dict"),
        (torch.rand(2, 3, 4, 4), torch.rand(3, 5), "targets: expected one per image"),
        (torch.rand(2, 3, 4), torch.rand(2, 5), "images: expected"),
        (torch.rand(2, 1, 4, 4), torch.rand(2, 5), "preprocessing"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.rand(2, 5), "images: expected floating"),
        (torch.full((2, 3, 4, 4), float("nan")), torch.rand(2, 5), "x_syn.pt: values that are not finite"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0, -1]), "labels from 0"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0, 2**50]), "labels from 0"),
        (torch.rand(2, 3, 4, 4).to_sparse(), torch.rand(2, 5), "x_syn.pt: expected a plain tensor of numbers"),
        (torch.rand(0, 3, 4, 4), torch.rand(0, 5), "at least one pair"),
    ],
)
def test_published_files_that_do_not_fit(tmp_path, x, y, named):
    with pytest.raises(InputError, match=named):
        read_published(*published(tmp_path, x, y), PRE)


def test_import_needs_the_preprocessing(ssdd_command, tmp_path):
    x, y = published(tmp_path, torch.rand(2, 3, 4, 4), torch.rand(2, 5))
    for arguments, named in [
        ((), "expected one of the two"),
        (("--mean", "0.1"), "expected one of the two"),
        (("--mean", "a", "--std", "1"), "--mean: expected numbers"),
    ]:
        printed = ssdd_command("import", x, y, "-o", tmp_path / "a.safetensors", *arguments, fails=True)
        assert named in str(printed.exception)
    whole = x.read_bytes()
    x.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="x_syn.pt"):
        read_published(x, y, PRE)
    with pytest.raises(InputError, match="no such file"):
        read_published(tmp_path / "none.pt", y, PRE)


def labelled(folder, x, y):
    torch.save(x, folder / "images.pt")
    torch.save(y, folder / "labels.pt")
    return folder / "images.pt", folder / "labels.pt"


def test_import_of_a_labelled_set(ssdd_command, tmp_path):
    x = torch.rand(4, 3, 8, 8)
    arguments = ("--mean", "0.4,0.5,0.1", "--std", "0.2,0.3,0.25", "--overwrite", "-o", tmp_path / "a.safetensors")
    ssdd_command(
        "import", "--labels", *labelled(tmp_path, x, torch.tensor([0, 2, 1, 2])), "--method", "MTT", *arguments
    )
    made = DistilledSet.load(tmp_path / "a.safetensors")
    assert torch.equal(made.images, x) and made.targets.argmax(1).tolist() == [0, 2, 1, 2]
    assert (made.method, made.target_kind, made.support_input) == ("MTT", "labels", "normalised")
    soft = torch.rand(4, 5).softmax(1)
    normalised = PRE.normalise(x)
    files = labelled(tmp_path, normalised, soft)
    ssdd_command("import", "--labels", *files, "--stored", "normalised", *arguments)
    made = DistilledSet.load(tmp_path / "a.safetensors")
    assert torch.allclose(made.images, x, atol=1e-6) and torch.equal(made.targets, soft) and made.method == "labelled"
    assert made.bytes == 4 * (x.numel() + soft.numel())
    real = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", x_train=real, y_train=np.arange(20) % 4, x_test=real, y_test=np.arange(20) % 4)
    whole = (x * 255).round().to(torch.uint8)
    files = labelled(tmp_path, whole, torch.tensor([0, 2, 1, 2], dtype=torch.int32))
    ssdd_command("import", "--labels", *files, "-d", tmp_path / "real.npz", "-o", tmp_path / "b.safetensors")
    made = DistilledSet.load(tmp_path / "b.safetensors")
    assert made.targets.shape == (4, 4) and torch.equal(made.images * 255, whole.float())  # the classes of the data


@pytest.mark.parametrize(
    "x, y, named",
    [
        (torch.rand(2, 3, 4, 4), torch.tensor([0, -1]), "labels.pt: expected labels from 0 to at most 9, got -1 to 0"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0, 10]), "labels.pt: expected labels from 0 to at most 9"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0, 1, 2]), "targets: expected one per image"),
        (torch.rand(2, 3, 4, 4), torch.tensor([0.0, 1.0]), r"labels.pt: expected int \[S\] or float"),
        (torch.rand(2, 3, 4, 4), torch.full((2, 10), 0.2), "labels.pt: expected shares of classes"),
        (torch.rand(2, 3, 4, 4), torch.tensor([[-1.0, 2.0]] * 2), "labels.pt: expected shares of classes"),
        (torch.rand(2, 3, 4, 4), torch.tensor([[0.5, 0.5]] * 2), "labels.pt: expected shares of 10 classes, got 2"),
        (torch.rand(2, 3, 4), torch.zeros(2).long(), "images.pt: expected images"),
        (torch.rand(2, 1, 4, 4), torch.zeros(2).long(), "images.pt: expected images of 3 channels"),
        (torch.full((2, 3, 4, 4), float("inf")), torch.zeros(2).long(), "images.pt: values that are not finite"),
    ],
)
def test_labelled_files_that_do_not_fit(tmp_path, x, y, named):
    with pytest.raises(InputError, match=named):
        read_labelled(*labelled(tmp_path, x, y), PRE, classes=10)


CIFAR = Preprocessing((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262))
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "make, stored, named",
    [
        (CIFAR.normalise, None, "give stored='normalised' .--stored normalised. and the mean and std"),
        (CIFAR.normalise, "pixels", "give stored='normalised' .--stored normalised. and the mean and std"),
        (lambda x: (x - 0.13) / 0.31, None, "give stored='normalised'"),
        (lambda x: 2 * x - 1, None, "0.5 per channel for images in .-1, 1.*If they are pixels, give stored='pixels'"),
        (lambda x: x * 255, None, r"expected pixels around \[0, 1\]; divide pixels up to 255 by 255"),
        (lambda x: x * 310 - 20, "pixels", r"expected pixels around \[0, 1\]; divide pixels up to 255 by 255"),
        (lambda x: (x * 255).long(), None, "torch.int64 values.*or save them as uint8"),
        (
            lambda x: (x * 255).to(torch.uint8),
            "normalised",
            "none is below 0; they look like pixels: leave out .*ised.$",
        ),
        (lambda x: x * 255, "normalised", "they look like pixels: leave out .*divide pixels up to 255 by 255"),
        (lambda x: x, "normalised", "they look like pixels: leave out stored='normalised' .--stored normalised.$"),
        (
            lambda x: x * 12 - 6,
            "normalised",
            "when mean 0.491, 0.482, 0.447 and std 0.247.* are undone, got .*--mean, --",
        ),
        (lambda x: x, "raw", "stored: expected 'pixels' or 'normalised', got 'raw'"),
    ],
)
def test_images_that_are_not_what_the_import_was_told(tmp_path, make, stored, named):
    files = labelled(tmp_path, make(torch.rand(20, 3, 8, 8)), torch.zeros(20).long())
    with pytest.raises(InputError, match=named):
        read_labelled(*files, CIFAR, stored=stored)


@pytest.mark.parametrize(
    "make, preprocessing, stored",
    [
        (lambda x: x, CIFAR, None),
        (lambda x: torch.where(torch.rand(x.shape) < 0.02, -0.3, x), CIFAR, None),
        (lambda x: 1.2 * x - 0.1, CIFAR, "pixels"),
        (CIFAR.normalise, CIFAR, "normalised"),
        (IMAGENET.normalise, IMAGENET, "normalised"),
        (lambda x: 2 * x - 1, Preprocessing((0.5,) * 3, (0.5,) * 3), "normalised"),
    ],
)
def test_images_of_an_import_in_every_form(tmp_path, make, preprocessing, stored):
    x = torch.rand(20, 3, 8, 8)
    file = make(x)
    read = read_labelled(*labelled(tmp_path, file, torch.zeros(20).long()), preprocessing, stored=stored)
    torch.testing.assert_close(read.images, x if stored == "normalised" else file)

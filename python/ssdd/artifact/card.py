"""The card of a distilled set: README.md in the form of the Hugging Face hub, with all that its user must know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import write_atomically
from .pairs import DistilledSet

CARD = "README.md"
_MARK = "<!-- card of a distilled set, written by ssdd: {} -->"

LICENCES = ("apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "mit", "bsd-3-clause")
"""Names that the hub knows; any other note is ``other`` there, and stands in the text."""


def card_file(artifact: Path) -> Path:
    """Where the card of ``artifact`` is or goes: README.md beside it, unless that is of something else."""
    file = artifact.parent / CARD
    if file.is_file() and _MARK.format(_line(artifact.name)) not in file.read_text(encoding="utf-8", errors="replace"):
        return artifact.with_suffix(".README.md")
    return file


def write_card(pairs: DistilledSet, artifact: Path) -> Path:
    """Write the card of ``pairs``, which are in the file ``artifact``, beside it; return its path."""
    return write_atomically(card_file(artifact), card_text(pairs, artifact.name).encode())


def card_text(pairs: DistilledSet, name: str) -> str:
    """The card as Markdown. ``name``: of the file that it is about."""
    source, licence = _line(pairs.source) or "an unnamed set", _line(pairs.licence)
    known = licence.lower() in LICENCES
    count, channels, height, width = pairs.images.shape
    size = "n<1K" if count < 1000 else "1K<n<10K" if count < 10_000 else "10K<n<100K"
    front = {
        "license": licence.lower() if known else "other",
        "tags": ["dataset-distillation", "self-supervised-learning", "ssdd"],
        "size_categories": [size],
        "pretty_name": f"{count} distilled images of {source}",
    }
    kind = "class scores" if pairs.target_kind == "labels" else "a teacher's representations"
    parts = [
        # JSON is YAML: a name of a data set cannot end the front matter or add a key to it.
        "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()) + "\n---",
        _MARK.format(_line(name)),
        f"# {count:,} distilled images of {_text(source)}",
        f"`{_code(name)}` holds {count:,} images, {channels} × {height} × {width}, and a target of "
        f"{pairs.targets.shape[1]:,} numbers for each ({kind}). A network that is pre-trained on these pairs takes the "
        f"place of one that is pre-trained on all images of {_text(source)} without their labels.",
        _use(name),
        _preprocessing(pairs),
        _recipe(pairs),
        _making(pairs),
    ]
    origin = f"The images come from {_text(source)}: they start as images of it, or are images of it. "
    if licence:
        origin += f"Licence: {_text(licence)}."
    else:
        origin += "No licence was stated; that of the source applies to what is derived from it."
    parts += [f"## Source and licence\n\n{origin}"]
    return "\n\n".join(parts) + "\n"


def _use(name: str) -> str:
    return f"""## Use

```bash
ssdd pretrain {_code(name)} --model resnet18 -o weights.safetensors
```

This uses the recipe below. Without ssdd, read the tensors `images` and `targets`:

```python
from safetensors.torch import load_file

pairs = load_file({json.dumps(name)})
```

If `images` has the type uint8, the file is compact: pixels are `images.low + images / images.scale` (one low and one
scale per image and channel), and the versions by fixed transforms (below, if there are any) are computed from them."""


def _preprocessing(pairs: DistilledSet) -> str:
    p = pairs.preprocessing
    fed = "the same way" if pairs.support_input == "normalised" else "as they are, without normalisation"
    text = (
        "## Preprocessing\n\nA network is fed real images as pixels in [0, 1], minus the mean, divided by the standard "
        f"deviation, per channel:\n\n| | |\n|---|---|\n| mean | {_numbers(p.mean)} |\n| std | {_numbers(p.std)} |\n\n"
        f"The distilled images are fed {fed}. Their pixels may leave [0, 1]; do not cut them off."
    )
    if pairs.storage:
        text += f"\n\nThe set was learned in this form:\n\n{_json(pairs.storage)}"
    return text


def _recipe(pairs: DistilledSet) -> str:
    if not pairs.recipe:
        return "## Pre-training recipe\n\nNone is recorded."
    rows = "\n".join(f"| {_text(str(key))} | {_text(str(value))} |" for key, value in pairs.recipe.items())
    return (
        "## Pre-training recipe\n\nThe set was made to be used so: squared error, SGD, no augmentation.\n\n"
        f"| setting | value |\n|---|---|\n{rows}"
    )


def _making(pairs: DistilledSet) -> str:
    about = {"method": pairs.method, "seed": pairs.seed, "measured": pairs.metrics, "versions": pairs.versions}
    return f"## How it was made\n\n{_json(about | {'settings': pairs.config})}"


def _json(value: Any) -> str:
    return f"```json\n{_fence(json.dumps(value, indent=1))}\n```"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _line(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def _text(text: str) -> str:
    """The text as text: nothing in it is markup."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>()#+!|~&" else c for c in _line(text))


def _code(text: str) -> str:
    return _line(text).replace("`", "'")


def _fence(text: str) -> str:
    return text.replace("```", "'''")

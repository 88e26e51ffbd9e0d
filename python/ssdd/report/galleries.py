"""The pictures of a report: distilled images with the nearest real ones, and images over the steps."""

from __future__ import annotations

from collections.abc import Sequence

from .markup import Html, join, tag
from .material import PIXELS as REAL_PIXELS
from .material import SHOWN, Material, to_bytes_per_pixel
from .record import Gallery, Record
from .sprites import Sprite, make_sprite

ROWS = 8
"""Images whose steps are shown."""


class Pictures:
    """The sprites of a report, each with a name of its own, and the rules that show them."""

    def __init__(self) -> None:
        self.rules: list[str] = []

    def add(self, images: object, photographs: bool = False, pixels: int = 1 << 20) -> Sprite:
        """A new sprite."""
        sprite = make_sprite(images, f"s{len(self.rules)}", photographs, pixels)  # type: ignore[arg-type]
        self.rules.append(sprite.style)
        return sprite


def side_by_side(columns: Sequence[Html]) -> Html:
    """One column per run where there is room."""
    return tag("div", *columns, class_="runs" if len(columns) > 1 else "one")


def images_section(records: Sequence[Record], pictures: Pictures) -> Html | None:
    """All distilled images. The image under the pointer or the focus is shown with its target's nearest real images."""
    columns = []
    for r, record in enumerate(records):
        shown = [
            _gallery(gallery, f"{r}-{g}", pictures, len(records) > 1) for g, gallery in enumerate(record.galleries)
        ]
        if not shown:
            continue
        parts: list[object] = [tag("h3", record.name) if len(records) > 1 else None]
        for gallery, figure in zip(record.galleries, shown, strict=True):
            if gallery is record.galleries[0]:
                parts.append(tag("p", gallery.name, class_="galleryname") if len(shown) > 1 else None)
                parts.append(figure)
            else:
                parts.append(tag("details", tag("summary", gallery.name), figure))
        if record.left_out:
            parts.append(
                tag("p", f"{record.left_out} more sets of images are in the folder of this run.", class_="note")
            )
        columns.append(tag("div", *parts))
    if not columns:
        return None
    hint = (
        "Point at an image, or move to it with Tab and the arrow keys, to see the real images whose representations "
        "are nearest to its target."
    )
    return join([tag("p", hint, class_="hint"), side_by_side(columns)])


def _gallery(gallery: Gallery, name: str, pictures: Pictures, narrow: bool) -> Html:
    pairs, material = gallery.pairs, gallery.material
    n, _, h, w = pairs.images.shape
    sprite = pictures.add(to_bytes_per_pixel(pairs.images[:SHOWN]))
    near = None
    if material is not None and len(material.nearest) == sprite.count:
        near = pictures.add(material.real, photographs=True, pixels=REAL_PIXELS)
    width = 72 if n <= 40 else 52 if n <= 100 else 42 if n <= 400 else 34
    tiles = [
        sprite.tile(
            i,
            element="button",
            type="button",
            tabindex=0 if i == 0 else -1,
            aria_label=_words(material if near else None, i),
            aria_current="true" if i == 0 else None,
            **(_neighbours(material, near, i) if near and material else {}),
        )
        for i in range(sprite.count)
    ]
    caption = f"{n:,} images of {w}×{h} pixels"
    if n > sprite.count:
        caption += f", the first {sprite.count:,} shown"
    if sprite.reduced:
        caption += ", made smaller to fit this page"
    low, high = float(pairs.images.min()), float(pairs.images.max())
    if low < -0.01 or high > 1.01:
        caption += f"; learned pixels from {low:.2f} to {high:.2f}, cut off at black and white"
    return tag(
        "figure",
        tag(
            "div",
            tag(
                "div",
                *tiles,
                class_="tiles",
                role="group",
                aria_label=caption,
                style=f"--wide:{width}px;--small:{width * 3 // 4}px;--ratio:{h / w:g}",
            ),
            _detail(sprite, near, material, h / w),
            class_="viewer narrow" if narrow else "viewer",
        ),
        tag("figcaption", f"{caption}."),
        class_="gallery",
        data_gallery=name,
    )


def _class(material: Material, u: int) -> str:
    return f"class {int(material.labels[u])}" if len(material.labels) else f"image {int(material.rows[u]):,}"


def _words(material: Material | None, i: int) -> str:
    if material is None:
        return f"Distilled image {i}"
    names = ", ".join(_class(material, u) for u in material.nearest[i].tolist())
    return f"Distilled image {i}. Nearest real images: {names}"


def _neighbours(material: Material, near: Sprite, i: int) -> dict[str, str]:
    index = material.nearest[i].tolist()
    return {
        "data_near": " ".join(f"{u % near.columns},{u // near.columns}" for u in index),
        "data_text": "|".join(
            f"{_class(material, u)}\n{d:.2f}" for u, d in zip(index, material.distance[i].tolist(), strict=True)
        ),
    }


def _detail(sprite: Sprite, near: Sprite | None, material: Material | None, ratio: float) -> Html:
    """The image in question and its neighbours; of the first image until another is chosen."""
    big = tag("div", sprite.tile(0, data_role="big"), class_="big", style=f"--ratio:{ratio:g}")
    parts = [tag("p", "Image 0", class_="which", data_role="which"), big]
    if near is not None and material is not None:
        shown = []
        for u, d in zip(material.nearest[0].tolist(), material.distance[0].tolist(), strict=True):
            words = tag("span", f"{_class(material, u)}\n{d:.2f}", data_role="words")
            shown.append(tag("li", near.tile(u, data_role="near"), words))
        parts.append(tag("p", "Nearest real images", class_="which"))
        parts.append(tag("ol", *shown, class_="near", style=f"--ratio:{ratio:g}"))
        note = "The number is the distance to the target; 1 is the spread of all real representations."
        parts.append(tag("p", note, class_="note"))
    else:
        parts.append(tag("p", "This run kept no nearest real images.", class_="note"))
    return tag("div", *parts, class_="detail", aria_live="polite")


def steps_section(records: Sequence[Record], pictures: Pictures) -> Html | None:
    """The first images of each run at some of its outer steps."""
    columns = []
    for record in records:
        kept = [g for g in record.galleries if g.material is not None and g.material.snapshots]
        if not kept:
            continue
        table = _film(kept[0].material, pictures)  # type: ignore[arg-type]
        label = ", ".join(part for part in (record.name if len(records) > 1 else "", kept[0].name) if part)
        columns.append(tag("figure", tag("figcaption", label) if label else None, tag("div", table, class_="scroll")))
    if not columns:
        return None
    hint = "Each row is one image, from the real image it starts as (step 0) to the end. Most of the change is early."
    return join([tag("p", hint, class_="hint"), side_by_side(columns)])


def _film(material: Material, pictures: Pictures) -> Html:
    import torch

    steps = sorted(material.snapshots)
    count = min(ROWS, *(len(material.snapshots[s]) for s in steps))
    frames = torch.cat([material.snapshots[s][:count] for s in steps])
    sprite = pictures.add(frames)
    h, w = frames.shape[1:3]
    head = tag("tr", tag("th", "step", scope="col"), *(tag("th", f"{s:,}", scope="col") for s in steps))
    rows = [
        tag(
            "tr",
            tag("th", f"image {i}", scope="row"),
            *(
                tag("td", sprite.tile(k * count + i, role="img", aria_label=f"image {i} at step {s}"))
                for k, s in enumerate(steps)
            ),
        )
        for i in range(count)
    ]
    width = 56
    return tag(
        "table",
        tag("thead", head),
        tag("tbody", *rows),
        class_="film",
        style=f"--wide:{width}px;--small:{width * 3 // 4}px;--ratio:{h / w:g}",
    )

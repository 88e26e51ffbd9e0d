"""The work of one launch on a GPU: FLOPs and traffic, as formulas of its arguments.

tests/simt/test_rows.py compares each formula with the twin's counts at a size that the twin can run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TILE, DEPTH = 64, 16
DOT, DISTANCE, ABSOLUTE, DIFFERENCE, SIGN = range(5)  # Inner of product.cuh


@dataclass(frozen=True)
class Work:
    """The work of one launch. flops: needed; executed: with the padding of tiles (the twin counts these
    multiply-adds)."""

    flops: float = 0
    executed: float = 0
    loaded: int = 0  # bytes that lanes request from global memory through the layer; exact, as executed and stored
    stored: int = 0
    tensor: bool = False
    beside: float = 0  # the part of executed that a launch on the matrix units computes on the ordinary units


def _up(x: int, to: int) -> int:
    return -(-x // to) * to


def _extents(n: int, tile: int = TILE) -> list[int]:
    return [min(tile, n - i) for i in range(0, n, tile)]


def _product(launch: dict[str, Any]) -> Work:
    """One product, or two side by side."""
    operands = [a for a in launch["arguments"] if isinstance(a, dict)]
    works = [_one_product(launch["kernel"], p, tiling) for p, tiling in zip(operands[::2], operands[1::2], strict=True)]
    total = {key: sum(getattr(w, key) for w in works) for key in ("flops", "executed", "loaded", "stored")}
    return Work(**total, tensor=works[0].tensor)


def _tiles(p: dict[str, Any], tiling: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the rows and columns of each tile of one problem."""
    rows, columns = (_extents(p[side], tiling["size"]) for side in ("m", "n"))
    return [(r, c) for i, r in enumerate(rows) for j, c in enumerate(columns) if p["triangle"] == 0 or j <= i]


def _one_product(kernel: str, p: dict[str, Any], tiling: dict[str, Any]) -> Work:
    if p["inner"] == DIFFERENCE:  # for problems in distant clusters, which no call here has: each block ends at once
        return Work()
    b, m, n, k, size = p["batch"], p["m"], p["n"], p["k"], p["product"]
    if p["dots"]:
        return _distances(p, tiling)
    kind, full, tile = kernel.split("_")[0], p["triangle"] == 0, tiling["size"]
    # Floats take three passes of the tensor cores, one less per operand of 16 bits.
    passes = 1 + sum(element == 4 for element in p["element"]) if kind in ("tensor", "mixed", "halves") else 1
    if p["scales"] and kernel.startswith("tensor_kernel<128"):  # its tiles were computed from halves
        return Work(loaded=4 * b * sum(r + c for r, c in _tiles(p, tiling)) * tiling["splits"], tensor=True)
    share, step = tiling["k_share"], 2 * DEPTH if kind in ("half", "halves") else DEPTH
    depth = sum(_up(min(share, k - s * share), step) for s in range(tiling["splits"]) if k > s * share)
    tiles = _tiles(p, tiling)
    # Warps of tile / 2 x 32 without work do nothing. Floats of these layouts are computed as B^T A^T.
    warp = (tile // 2, 32) if kind in ("tensor", "half", "halves") else (tile, tile)
    if kind == "tensor" and p["k_major"] == [True, False]:
        warp = (32, tile // 2)
    made = sum(_up(r, warp[0]) * _up(c, warp[1]) for r, c in tiles)
    expected = m * n if full else m * (m + 1) // 2
    stored = expected if p["triangle"] == 1 else m * n
    ones = b * m * n * size * (p["inner"] == SIGN) * tiling["splits"]  # elements of `from`, once per split
    extra = (
        ones + b * expected * size * bool(p["add"]) + b * max(0, m - p["accumulate_from"]) * n * size * p["accumulate"]
    )
    operands = sum(r * p["element"][0] + c * p["element"][1] for r, c in tiles)
    # Sums of a split, in pieces of 16 bytes along a row: written by each, read by the last (finish_tile.cuh).
    pieces = sum(r * _up(c * size, 16) for r, c in tiles)
    parts = tiling["splits"] * pieces if tiling["splits"] > 1 else 0
    # Sum of squares of the result, here in one launch: one part per tile, which the last block reads and adds.
    sums = len(tiles) * size * (p["squares"] > 1)
    # Scales: read to choose the kernel, to split, and by each warp to undo them.
    scales = sum(20 * (r + c) + 32 * c + 128 * r for r, c in tiles) * tiling["splits"] if kind == "halves" else 0
    return Work(
        flops=b * expected * k * (3 if p["inner"] in (DISTANCE, SIGN) else 2),
        executed=b * made * depth * 2 * passes * (p["inner"] != ABSOLUTE),  # without multiply-adds
        loaded=b * (operands * k + parts + sums + scales) + extra,
        stored=b * (stored * size + parts + sums + size * (p["squares"] > 0)),
        tensor=kind != "plain",
    )


def _distances(p: dict[str, Any], tiling: dict[str, Any]) -> Work:
    """Count distances by a product of which none is lost: x.z and two squared lengths are read in every split."""
    b, m, n, size, full = p["batch"], p["m"], p["n"], p["product"], p["triangle"] == 0
    wanted = b * (m * n if full else m * (m + 1) // 2)
    return Work(flops=5 * wanted, loaded=3 * wanted * size * tiling["splits"], stored=b * m * n * size)


def _origin(launch: dict[str, Any]) -> Work:
    """Count up to 32 points read, and their mean written."""
    points, features, strips = launch["arguments"][:3]
    count = launch["blocks"] // strips * features * _size(launch)
    return Work(loaded=min(32, points) * count, stored=count)


def _center(launch: dict[str, Any]) -> Work:
    """Count points and their origin read; shifted points and their squared lengths written."""
    count, size = launch["blocks"] * launch["arguments"][0]["features"], _size(launch)
    return Work(flops=4 * count, executed=2 * count, loaded=2 * count * size, stored=(count + launch["blocks"]) * size)


# --- factorisations: their multiply-adds are counted as the kernels do them, padding and all --------------------------

STRIP, SQUARE, WARP = 16, 32, 32


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


PANEL = 32  # rows of a strip that its first warp factors
PASS, PASSES_UP_TO, SOLVED_BY_TILES = 16, 32, 64  # columns: of one pass in a block, of all its passes, of a tile


def _strip_flops(size: int) -> int:
    """Count factor_strip: groups of 4 pivots; each lane has its diagonal and the later columns."""
    return 2 * PANEL * -(-size // 4) * (4 + 15 + 14 + 13 + 12)


def _shared_flops(n: int) -> int:
    """Count factor_shared of order n: a strip's update and pivots, the squares behind it, its rows below by whole
    warps."""
    flops = 0
    for p in range(0, n, STRIP):
        flops += _strip_flops(min(STRIP, n - p)) + 2 * _up(max(0, n - p - PANEL), 32) * _triangle(STRIP - 1)
        if p > 0:
            flops += 2 * PANEL * STRIP * STRIP
            if n > WARP:
                flops += 2 * _triangle(-(-(n - p) // SQUARE)) * SQUARE * SQUARE * STRIP
    return flops


def _one_way_flops(n: int, width: int) -> int:
    """Count substitute, one way, for that many columns: tiles of whole strips, and the diagonal blocks."""
    strips = -(-n // STRIP)
    tiles = _triangle(strips - 1) * STRIP * STRIP * width
    rows = sum(4 * k + 6 for p in range(0, n, STRIP) for k in range(0, min(STRIP, n - p), 4))
    return 2 * (tiles + width * rows)


def _passes_flops(n: int, c: int) -> int:
    return -(-c // PASS) * 2 * _one_way_flops(n, PASS)


def _lower(n: int, vectors: bool, size: int) -> int:
    """Return the elements of a triangle as load_lower copies it."""
    wide = 16 // size if vectors else 1
    return sum(min(n, _up(i + 1, wide)) for i in range(n))


def _small(launch: dict[str, Any]) -> Work:
    f, size = launch["arguments"][0], _size(launch)
    b, n, c = f["batch"], f["n"], f["c"]
    in_block = launch["kernel"].startswith("block_kernel")
    c = 0 if in_block and c > PASSES_UP_TO else c
    written = n * n if f["zero_upper"] else _triangle(n)
    return Work(
        flops=b * (n**3 / 3 + 2 * n * n * c),
        executed=b * (_shared_flops(n) + _passes_flops(n, c)),
        loaded=b * (_lower(n, in_block and launch["arguments"][1], size) + n * c) * size,
        stored=b * (written + n * c) * size,
    )


def _fused(launch: dict[str, Any]) -> Work:
    f, points = launch["arguments"][:2]
    size, b, n, d = _size(launch), f["batch"], f["n"], points["points"]
    c, squares = f["c"] if f["c"] <= PASSES_UP_TO else 0, _triangle(-(-n // SQUARE))
    gram = 2 * squares * SQUARE * SQUARE * _up(d, DEPTH)
    gram += 0 if points["distance"] else 2 * sum(_up(i + 1, 32) for i in range(n))  # its scale and bias
    return Work(
        flops=b * (_triangle(n) * d * (3 if points["distance"] else 2) + n**3 / 3 + 2 * n * n * c),
        executed=b * (gram + _shared_flops(n) + _passes_flops(n, c)),
        loaded=b * (-(-squares // 8) * n * d + n * c) * size,
        stored=b * (n * n + n * c) * size,  # K above, L below
    )


def _solve(launch: dict[str, Any]) -> Work:
    n, _, vectors, c, _, _, _, chunks, after = launch["arguments"]
    b, size = launch["blocks"] // chunks, _size(launch)
    width = int(launch["kernel"].split("<")[1].split(",")[0])
    follows = _following(after, chunks, size) if after["follows"] else Work()
    return Work(
        flops=b * 2 * n * n * c + follows.flops,
        executed=b * chunks * 2 * _one_way_flops(n, width),
        loaded=b * chunks * _lower(n, vectors, size) * size + (follows.loaded or b * n * c * size),
        stored=b * n * c * size + follows.stored,
    )


def _begin(launch: dict[str, Any]) -> Work:
    """Count storing the diagonal and clearing the flags."""
    f = launch["arguments"][0]
    n, b, tiles = f["n"], f["batch"], -(-f["n"] // TILE)
    flags = tiles * tiles + 2 * tiles * -(-f["c"] // TILE)
    return Work(stored=b * (n * _size(launch) + 4 * flags))


def _tile_flops(launch: dict[str, Any]) -> int:
    """Return the FLOPs of one product of 64 x 64 x 64."""
    return 2 * TILE**3 * (3 if _size(launch) == 4 else 1)


def _factor_tiles(launch: dict[str, Any]) -> Work:
    f, size, product = launch["arguments"][0], _size(launch), _tile_flops(launch)
    b, n, edges, vectors = f["batch"], f["n"], _extents(f["n"]), launch["arguments"][1]
    zeros = f["zero_upper"]
    executed = loaded = stored = beside = 0
    for j, columns in enumerate(edges):
        # The diagonal: one operand per product; factored.
        executed += j * product
        beside += _shared_flops(columns)
        loaded += columns * columns + columns + j * columns * TILE
        stored += columns * columns if zeros else _triangle(columns)
        for rows in edges[j + 1 :]:
            executed += j * product
            beside += _one_way_flops(TILE, SOLVED_BY_TILES)
            loaded += rows * columns + j * TILE * (rows + columns) + _lower(TILE, vectors, size)
            stored += rows * columns * (2 if zeros else 1)
    return Work(
        flops=b * n**3 / 3,
        executed=b * (executed + beside),
        beside=b * beside,
        loaded=b * loaded * size,
        stored=b * stored * size,
        tensor=size == 4,
    )


def _cluster(launch: dict[str, Any]) -> Work:
    """Count the factorisation in one cluster of blocks."""
    f, edges, vectors = launch["arguments"][0], _extents(launch["arguments"][0]["n"]), launch["arguments"][2]
    b, n, tiles, product = f["batch"], f["n"], len(edges), 3 * 2 * TILE**3
    # 32 rows by 16 columns by 16 steps of k; a strip of a warp, with its rows' four pivots at a time.
    step, strip = 3 * 2 * 32 * STRIP * 16, 2 * WARP * (4 * (10 + 6) + 6 * 16)
    factor = sum(max(1, 3 - s) * (s * step + strip) for s in range(TILE // STRIP))
    solve = 2 * sum(s * step + 2 * WARP * _triangle(STRIP - 1) for s in range(TILE // STRIP))
    pairs = tiles * (tiles - 1) // 2
    products = pairs + sum((tiles - 1 - j) * (tiles - 2 - j) // 2 for j in range(tiles))
    beside = tiles * factor + pairs * solve
    return Work(
        flops=b * n**3 / 3,
        executed=b * (products * product + beside),
        beside=b * beside,
        loaded=b * _lower(n, vectors, 4) * 4,
        stored=b * (n * n if f["zero_upper"] else _triangle(n)) * 4,
        tensor=True,
    )


def _clear(launch: dict[str, Any]) -> Work:
    return Work(stored=4 * launch["blocks"] * launch["arguments"][1])


def _solve_tiles(launch: dict[str, Any]) -> Work:
    s, size, product = launch["arguments"][0], _size(launch), _tile_flops(launch)
    b, n, c = s["batch"], s["n"], s["c"]
    edges, chunks, vectors = _extents(n), _extents(c), n * size % 16 == 0
    # One chunk, both ways: a tile is multiplied by every other once (L and x), then its own triangle.
    tiles, others = len(edges), sum(edges)
    executed = len(chunks) * tiles * (tiles - 1) * product
    beside = len(chunks) * sum(2 * _one_way_flops(rows, SOLVED_BY_TILES) for rows in edges)
    loaded = stored = 0
    for columns in chunks:
        loaded += sum((others - rows) * (rows + columns) for rows in edges) + 2 * n * columns
        loaded += sum(2 * _lower(rows, vectors, size) for rows in edges)
        stored += 2 * n * columns
    return Work(
        flops=b * 2 * n * n * c,
        executed=b * (executed + beside),
        beside=b * beside,
        loaded=b * loaded * size,
        stored=b * stored * size,
        tensor=size == 4,
    )


def _copy(launch: dict[str, Any]) -> Work:
    c = launch["arguments"][0]
    count = c["batch"] * c["rows"] * c["columns"] * _size(launch)
    return Work(loaded=count, stored=count)


def _mirror(launch: dict[str, Any]) -> Work:
    n, squares, size = launch["arguments"][0], launch["arguments"][3], _size(launch)
    b, edges = launch["blocks"] // squares, [min(32, n - i) for i in range(0, n, 32)]
    read = sum(r * c for i, r in enumerate(edges) for c in edges[: i + 1])
    return Work(loaded=b * read * size, stored=b * n * (n - 1) // 2 * size)


def _column_sums(launch: dict[str, Any]) -> Work:
    c, size = launch["arguments"][0], _size(launch)
    return Work(
        flops=c["batch"] * c["rows"] * c["columns"],
        loaded=c["batch"] * c["rows"] * c["columns"] * size,
        stored=c["batch"] * c["columns"] * size,
    )


def _scalars(launch: dict[str, Any]) -> Work:
    """Count a problem's numbers and the sums computed with them."""
    a, size = launch["arguments"][0], _size(launch)
    count = a["columns"] * a["rows"]
    return Work(flops=count, loaded=count * size, stored=a["columns"] * size)


def _after_solve(launch: dict[str, Any]) -> Work:
    return _following(*launch["arguments"], _size(launch))


def _following(s: dict[str, Any], parts: int, size: int) -> Work:
    """Count the work after a solve, by that many blocks per problem."""
    b, count = s["batch"], s["rows"] * s["columns"]
    parts = parts if parts > 1 else 0
    return Work(
        flops=2 * b * count,
        loaded=b * (2 * count + parts) * size,
        stored=b * ((3 * count if s["pack"] else 0) + parts) * size,
    )


def _little(launch: dict[str, Any]) -> Work:
    """Count one number or row per problem, which is negligible beside its launch."""
    return Work()


def _slope(launch: dict[str, Any]) -> Work:
    """Count two elements read and one written per element of K; of a square, half."""
    a = launch["arguments"][0]
    rows, columns, square = a["rows"], a["columns"], a["square"]
    problems = launch["blocks"] // rows
    # For a square, the part above the diagonal is set to 0.
    count = problems * (columns * (columns - 1) // 2 if square else rows * columns)
    size, zeros = _size(launch), launch["blocks"] if square else 0
    parts = launch["blocks"] if rows > 1 else 0  # a row's part of the parameter's gradient
    return Work(flops=8 * count, loaded=(2 * count + parts) * size, stored=(count + zeros + parts) * size)


def _map(launch: dict[str, Any]) -> Work:
    """Count one element read and one written per element of K."""
    a = launch["arguments"][0]
    count, size = a["batch"] * a["count"], _size(launch)
    return Work(flops=20 * count, loaded=count * size, stored=count * size)


def _function_slope(launch: dict[str, Any]) -> Work:
    """Count like :func:`_slope`; functions of x.z keep the diagonal of a square. Two parts per row."""
    a = launch["arguments"][0]
    rows, columns, size = a["rows"], a["columns"], _size(launch)
    problems, blocks = launch["blocks"] // rows, launch["blocks"]
    per_problem = rows * columns
    if a["square"]:
        per_problem = columns * (columns - 1) // 2 + (0 if a["distance"] else columns)
    count, zeros = problems * per_problem, blocks if a["square"] and a["distance"] else 0
    parts = blocks * (2 if rows > 1 else 1)
    return Work(flops=25 * count, loaded=(2 * count + parts) * size, stored=(count + zeros + parts) * size)


def _lengths(launch: dict[str, Any]) -> Work:
    count = launch["blocks"] * launch["arguments"][1]
    return Work(flops=2 * count, loaded=8 * count, stored=8 * launch["blocks"])


def _angle_map(launch: dict[str, Any]) -> Work:
    """Count the argument and one squared length read, and one element written, per element of K."""
    count = launch["blocks"] * launch["arguments"][0]["columns"]
    return Work(flops=80 * count, loaded=16 * count, stored=8 * count)


def _angle_slope(launch: dict[str, Any]) -> Work:
    """Count like :func:`_angle_map`, with Kbar; the slopes in |z|^2 unless it is square. Two parts per row."""
    a, blocks = launch["arguments"][0], launch["blocks"]
    count, parts = blocks * a["columns"], blocks * (2 if a["rows"] > 1 else 1)
    return Work(flops=240 * count, loaded=8 * (3 * count + parts), stored=8 * ((2 - a["square"]) * count + parts))


def _ranges(launch: dict[str, Any]) -> Work:
    """Count both operands read once; one scale stored per row, where neighbouring rows are neighbours in memory."""
    operands, batch = launch["arguments"][0]["operands"], launch["arguments"][1]
    elements = batch * sum(rows * k for rows, k, _ in operands)
    return Work(loaded=4 * elements, stored=4 * batch * sum(rows for rows, _, k_major in operands if not k_major))


def _hyper(launch: dict[str, Any]) -> Work:
    a, size = launch["arguments"][0], _size(launch)
    count, parts = launch["blocks"] // a["strips"] * a["c"] * a["rows"], launch["blocks"] if a["strips"] > 1 else 0
    return Work(flops=count, loaded=(count + parts) * size, stored=parts * size)


def _shift(launch: dict[str, Any]) -> Work:
    """Count subtracting the origin from points, and the largest distance per row."""
    count, size = launch["blocks"] * launch["arguments"][1], _size(launch)
    rows = launch["blocks"]
    return Work(flops=count, loaded=(2 * count + rows) * size, stored=(count + rows) * size)


# --- the loss with the queries read once (one_pass.cuh) ---------------------------------------------------------------


def _dot_flops(length: int) -> int:
    """Count the 8 x 4 products of one warp, whose lanes have 4 columns each."""
    return -(-length // 128) * 32 * 32 * 4 * 2


def _outer_flops(p: dict[str, Any], rows: int, width: int) -> int:
    """Count adding that many rows to [targets, width]."""
    return width * p["targets"] * rows * 2


def _pair_flops(p: dict[str, Any], rows: int) -> int:
    """Count the solves of all targets, two per warp, with so many rows per lane."""
    return p["targets"] // 2 * p["s"] * (32 * (rows + 1) - 2) * 4


def _left(p: dict[str, Any], b: int) -> int:
    """Count the elements that blocks of queries write: residuals, parts, and their losses if there are several."""
    losses = p["parts"] if p["parts"] > 1 else 0
    return b * (p["q"] * p["c"] + p["left"] * p["parts"] * p["part"] + losses)


def _few(launch: dict[str, Any]) -> Work:
    p = launch["arguments"][0]
    s, q, d, c, rows, left = (p[key] for key in ("s", "q", "d", "c", "rows", "left"))
    b, tiles, columns = launch["blocks"] // p["parts"], -(-q // rows), -(-s // 4)
    square = sum(min(2 * i + 2, columns) for i in range(-(-s // 8)))
    dots = sum(_dot_flops(min(p["chunk"], p["width"] - k)) for k in range(0, p["width"], p["chunk"]))
    units = p["parts"] * square + tiles * (rows // 8) * columns
    tile = 2 * rows * s * (p["targets"] + left * c) + left * _outer_flops(p, rows, p["width"])
    needed = s * s * d + s**3 / 3 + 2 * s * s * c + 2 * q * (s * d + s * c + left * c * (s + d))
    losses = p["parts"] if p["parts"] > 1 else 0
    return Work(
        flops=b * needed,
        executed=b * (units * dots + tiles * tile + p["parts"] * _pair_flops(p, 1)),
        loaded=4 * b * (q * d + q * c + tiles * s * d + p["parts"] * s * c + losses),  # X_q once
        stored=4 * (_left(p, b) + b * s * (s + c)),
    )


def _query(launch: dict[str, Any]) -> Work:
    p = launch["arguments"][0]
    s, q, d, c, rows, left = (p[key] for key in ("s", "q", "d", "c", "rows", "left"))
    b, tiles, supports = launch["blocks"] // p["parts"], -(-q // rows), -(-s // rows)
    dots = rows // 8 * (p["targets"] // 4) * _dot_flops(p["width"])
    outer, losses = _outer_flops(p, rows, p["width"]), p["parts"] if p["parts"] > 1 else 0
    return Work(
        flops=b * 2 * (q * d * c * (1 + left) + s * d * c * (1 + left)),
        executed=b * (tiles * (dots + left * outer) + p["parts"] * supports * (outer + left * dots)),
        loaded=4 * b * (q * d + q * c + p["parts"] * (s * d * (1 + left) + s * c) + losses),  # X_q once
        stored=4 * _left(p, b),
    )


def _finish(launch: dict[str, Any]) -> Work:
    p = launch["arguments"][0]
    s, q, d, c, strips = (p[key] for key in ("s", "q", "d", "c", "strips"))
    b, to_points = launch["blocks"] // strips, p["x_s"] or p["x_q"]
    outer = (1 + p["x_s"]) * _outer_flops(p, s, p["width"]) if to_points else 0
    tiles = [2 * -(-s // 4)] * p["x_s"] + [-(-min(64, q - i) // 4) for i in range(0, q, 64)] * p["x_q"]
    rows = sum(tiles) * p["width"] * p["targets"] * 4 * 2
    per_strip = s * (s + 1) // 2 + s * c + p["parts"] * (p["part"] - p["moment"]) + q * c * p["x_q"]
    written = s * c * p["y_s"] + s * d * p["x_s"] + q * d * p["x_q"]
    needed = 2 * s * s * c + 4 * s * d * c * (1 + p["x_s"]) / 2 + 4 * s * d * c * p["x_s"] + 2 * q * d * c * p["x_q"]
    return Work(
        flops=b * needed,
        executed=b * (strips * _pair_flops(p, 4) + outer + rows),
        loaded=4 * b * (s * d + p["parts"] * c * p["width"] + strips * per_strip),  # no X_q
        stored=4 * b * written,
    )


FORMULAS: dict[str, Callable[[dict[str, Any]], Work]] = {
    "tensor_kernel": _product,
    "half_kernel": _product,
    "mixed_kernel": _product,
    "plain_kernel": _product,
    "distance_kernel": _product,
    "origin_kernel": _origin,
    "center_kernel": _center,
    "halves_kernel": _product,
    "ranges_kernel": _ranges,
    "warp_kernel": _small,
    "block_kernel": _small,
    "fused_kernel": _fused,
    "solve_kernel": _solve,
    "begin_kernel": _begin,
    "factor_tiles_kernel": _factor_tiles,
    "cluster_kernel": _cluster,
    "clear_kernel": _clear,
    "solve_tiles_kernel": _solve_tiles,
    "copy_kernel": _copy,
    "mirror_kernel": _mirror,
    "sum_columns_kernel": _column_sums,
    "after_solve_kernel": _after_solve,
    "nan_kernel": _little,
    "fill_kernel": _little,
    "scalars_kernel": _scalars,
    "ridge_kernel": _little,
    "border_kernel": _little,
    "hyper_kernel": _hyper,
    "alpha_sum_kernel": _little,
    "rbf_hyper_kernel": _little,
    "slope_kernel": _slope,
    "map_kernel": _map,
    "function_slope_kernel": _function_slope,
    "lengths_kernel": _lengths,
    "angle_map_kernel": _angle_map,
    "angle_slope_kernel": _angle_slope,
    "shift_kernel": _shift,
    "few_kernel": _few,
    "query_kernel": _query,
    "finish_kernel": _finish,
}


def _size(launch: dict[str, Any]) -> int:
    return 8 if "double" in launch["kernel"] else 4


def work(launch: dict[str, Any]) -> Work:
    """Return the work of a launch that :func:`twin.ask` describes."""
    name = re.sub(r"<.*", "", launch["kernel"])
    if name not in FORMULAS:
        raise SystemExit(f"benchmarks/gpu/launch_work.py has no formula for what {name} computes and moves")
    return FORMULAS[name](launch)

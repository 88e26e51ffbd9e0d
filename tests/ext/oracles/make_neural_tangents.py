"""Write neural_tangents.json: kernels of infinitely wide ReLU networks, by the library neural-tangents, in float64.

It runs in an environment of its own, whose versions the file records:

    python -m venv nt
    nt/bin/pip install neural-tangents==0.6.5 jax==0.4.30 jaxlib==0.4.30 tf2jax==0.3.6 numpy==1.26.4
    nt/bin/python tests/ext/oracles/make_neural_tangents.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np  # noqa: E402
from neural_tangents import stax  # noqa: E402

NETWORKS = [
    {"depth": 1, "w_std": 2**0.5, "b_std": 0.1},
    {"depth": 1, "w_std": 1.0, "b_std": 0.0},
    {"depth": 3, "w_std": 2**0.5, "b_std": 0.1},
    {"depth": 5, "w_std": 1.2, "b_std": 0.5},
    {"depth": 0, "w_std": 1.5, "b_std": 0.3},
]


def kernels(network: dict, x: np.ndarray, z: np.ndarray | None) -> dict:
    def dense(width: int):
        return stax.Dense(width, W_std=network["w_std"], b_std=network["b_std"], parameterization="ntk")

    layers = [layer for _ in range(network["depth"]) for layer in (dense(64), stax.Relu())]
    _, _, kernel = stax.serial(*layers, dense(1))
    values = kernel(x, z, ("nngp", "ntk"))
    return {name: np.asarray(getattr(values, name), dtype=np.float64).tolist() for name in ("nngp", "ntk")}


def main() -> None:
    generator = np.random.default_rng(7)
    x, z = generator.normal(size=(5, 6)), generator.normal(size=(4, 6))
    rows = [{"network": n, "x, z": kernels(n, x, z), "x, x": kernels(n, x, None)} for n in NETWORKS]
    result = {
        "versions": {name: version(name) for name in ("neural-tangents", "jax", "jaxlib", "numpy")},
        "x": x.tolist(),
        "z": z.tolist(),
        "rows": rows,
    }
    Path(__file__).with_name("neural_tangents.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

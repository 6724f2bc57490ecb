"""Reference kernels of residual networks from neural-tangents, an independent implementation.

neural-tangents 0.6.5 does not import on a current JAX, so its values are frozen in `neural_tangents.json`. To make them
again:

    python3.11 -m venv nt && nt/bin/pip install neural-tangents==0.6.5 jax==0.4.30 jaxlib==0.4.30 "numpy<2"
    tf2jax==0.3.6 nt/bin/python tests/data/make_neural_tangents.py

One layer is x + eps (W act(x) + b) with W_ij ~ N(0, C_W / n), b_i ~ N(0, C_b). Only activations for which
neural-tangents has a closed form are here; its numerical route for all others states no error.
"""

import json
import pathlib
from importlib.metadata import version

import jax
import jax.numpy as jnp
from neural_tangents import stax

jax.config.update("jax_enable_x64", True)

PACKAGES = ("neural-tangents", "jax", "jaxlib", "numpy", "tf2jax")
ACTIVATIONS = {
    "Erf": stax.Erf(),
    "ReLU": stax.Relu(),
    "LeakyReLU": stax.LeakyRelu(0.2),
    "GELU": stax.Gelu(approximate=False),
    "Sin": stax.Sin(),
    "Linear": stax.Identity(),
}
# Inputs as rows; their kernel is x x^T / d.
SYMMETRIC = jnp.linalg.cholesky(1.4 * jnp.eye(4) + 0.6) * 2.0
MIXED = jnp.array([[1.0, 0.5, -0.3], [0.2, -1.5, 2.0], [1.0, 0.5, -0.3], [-1.0, -0.5, 0.3], [-0.9, -0.6, 0.1]])
SETTINGS = {
    "published": {"inputs": SYMMETRIC, "C_W": 2.0, "C_b": 0.0, "eps": 0.05, "layers": 40},
    "bias": {"inputs": SYMMETRIC, "C_W": 1.5, "C_b": 0.3, "eps": 0.5, "layers": 8},
    # Inputs 0 and 2 are equal, 3 is their negative, 4 nearly so; variances differ.
    "degenerate": {"inputs": MIXED, "C_W": 2.0, "C_b": 0.1, "eps": 0.25, "layers": 32},
}


def residual_kernel(activation, inputs, C_W, C_b, eps, layers):
    dense = stax.Dense(1, W_std=eps * C_W**0.5, b_std=eps * C_b**0.5)
    block = stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), stax.serial(activation, dense)), stax.FanInSum())
    embedding = stax.Dense(1, W_std=1.0)
    _, _, kernel_fn = stax.serial(embedding, *[block] * layers)
    return kernel_fn(inputs, None, "nngp")


def main():
    settings, cases = {}, []
    for name, setting in SETTINGS.items():
        x = setting["inputs"]
        settings[name] = {**setting, "inputs": x.tolist(), "K0": (x @ x.T / x.shape[1]).tolist()}
        for activation, layer in ACTIVATIONS.items():
            cases.append({"setting": name, "activation": activation, "K": residual_kernel(layer, **setting).tolist()})
    data = {"versions": {p: version(p) for p in PACKAGES}, "settings": settings, "cases": cases}
    path = pathlib.Path(__file__).with_name("neural_tangents.json")
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(path, len(cases), "cases")


if __name__ == "__main__":
    main()

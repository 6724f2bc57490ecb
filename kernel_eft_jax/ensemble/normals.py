r"""Standard normal numbers from counters, a separate sequence for each network, computed elementwise.

The random words are Threefry-2x32 (Salmon et al. 2011), the function behind JAX's default keys, at the counter (layer,
index) of the network's own key. So a draw depends on its network, layer and index alone. The function is written out
here, since then both words of a block are used (`jax.random` discards half), the layout is free, and all of it fuses
into one loop. Two words make two normals,

$$z = \sqrt{-2 \log u}\; e^{i \theta}$$

(Box and Muller), kept as one complex number.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PRNGKeyArray, UInt32

KeyWords = tuple[UInt32[Array, " B"], UInt32[Array, " B"]]
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def network_keys(key: PRNGKeyArray, networks: UInt32[Array, " B"]) -> KeyWords:
    """The two key words of each network: `fold_in(key, network)`, whatever the kind of key."""
    key = jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")
    words = jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key, networks))
    return words[:, 0], words[:, 1]


def threefry(
    keys: tuple[Array, Array], counters: tuple[Array, Array]
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Threefry-2x32 with 20 rounds: 64 random bits for each key and counter, all of one shape."""
    schedule = (*keys, keys[0] ^ keys[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = counters[0] + schedule[0], counters[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def two_normals(
    x: UInt32[Array, "*shape"], y: UInt32[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Two independent standard normals from two random words.

    The angle is a random multiple of pi/2 plus theta in [-pi/4, pi/4), where these polynomials (Moshier's) are exact to
    float32 rounding. The largest normal is 6.8.
    """
    u = (x.astype(jnp.float32) + 0.5) * 2.0**-32
    r = jnp.sqrt(-2 * jnp.log(u))
    theta = jax.lax.bitcast_convert_type(y << 2, jnp.int32).astype(jnp.float32) * (jnp.pi * 2.0**-33)
    w = theta * theta
    sin = theta + theta * w * (-1.6666654611e-1 + w * (8.3321608736e-3 - 1.9515295891e-4 * w))
    cos = 1 - 0.5 * w + w * w * (4.166664568298827e-2 + w * (-1.388731625493765e-3 + 2.443315711809948e-5 * w))
    turned, reversed_ = (y >> 31) == 1, ((y >> 30) & 1) == 1
    r = jnp.where(reversed_, -r, r)
    return r * jnp.where(turned, -sin, cos), r * jnp.where(turned, cos, sin)


def normal_pairs(x: UInt32[Array, "*shape"], y: UInt32[Array, "*shape"]) -> Complex[Array, "*shape"]:
    """The two normals of `two_normals` as real and imaginary part."""
    return jax.lax.complex(*two_normals(x, y))


def normals(keys: tuple[Array, Array], layer: UInt32[Array, ""], index: UInt32[Array, "..."]) -> Complex[Array, "..."]:
    """Pairs of normals at the counters (layer, index); key words and indices broadcast against each other."""
    shape = jnp.broadcast_shapes(keys[0].shape, index.shape)
    k = jnp.broadcast_to(keys[0], shape), jnp.broadcast_to(keys[1], shape)
    return normal_pairs(*threefry(k, (jnp.full(shape, layer, jnp.uint32), jnp.broadcast_to(index, shape))))


def real_and_imaginary(z: Complex[Array, "half ..."], count: int) -> Float[Array, "count ..."]:
    """The first `count` of the real and then the imaginary parts along the first axis."""
    return jnp.concatenate([z.real, z.imag])[:count]

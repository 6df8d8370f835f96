"""Squares of small images hidden, or taken from another image; runs on the device."""

import jax
import jax.numpy as jnp


def cutout(key: jax.Array, inputs: jax.Array, side: int) -> jax.Array:
    """Sets a square of each image to 0, which is its mean where it was normalised.

    Args:
      key: of the places.
      inputs: (n, height, width, channels).
      side: of the square, in pixels; what lies beyond the edge of the image is lost.

    Source:
      DeVries and Taylor 2017 (arXiv:1708.04552), section 3.2.
    """
    hidden = squares(key, inputs.shape, jnp.full(len(inputs), side))
    return jnp.where(hidden[..., None], 0, inputs)


def cutmix(
    key: jax.Array, inputs: jax.Array, targets: jax.Array, share: float
) -> tuple[jax.Array, jax.Array]:
    """Gives a share of the images a square of another one, and of its target.

    The square of an image of the batch comes from the one as far from the batch's other
    end; batches are in an order that is drawn. Its area before it is cut at the edge is
    uniform in [0, 1] of the image's; the targets are mixed by what is left of it.

    Args:
      key: of what is drawn.
      inputs: (n, height, width, channels).
      targets: probabilities, (n, classes).
      share: of the images, in [0, 1].

    Returns:
      Inputs and targets of the same shapes.

    Source:
      Yun et al. 2019 (arXiv:1905.04899), section 3.1, with alpha 1.
    """
    chosen, area, place = jax.random.split(key, 3)
    n, height = inputs.shape[:2]
    side = height * jnp.sqrt(jax.random.uniform(area, (n,)))
    side = jnp.where(jax.random.bernoulli(chosen, share, (n,)), side, 0)
    square = squares(place, inputs.shape, side)
    part = square.mean((1, 2))[:, None]
    inputs = jnp.where(square[..., None], inputs[::-1], inputs)
    return inputs, (1 - part) * targets + part * targets[::-1]


def squares(key: jax.Array, shape: tuple[int, ...], sides: jax.Array) -> jax.Array:
    """Tells which pixels are in a square about a pixel that is drawn for each image.

    Args:
      key: of the pixels in the middle.
      shape: (n, height, width, ...).
      sides: (n,), in pixels; an even side has one more above and to the left.

    Returns:
      bool, (n, height, width).
    """
    n, height, width = shape[:3]
    middle = (
        jax.random.uniform(key, (2, n, 1)) * jnp.array([height, width])[:, None, None]
    )
    middle = jnp.floor(middle)
    half = sides[:, None] / 2
    rows, columns = (
        (jnp.arange(size) >= at - half) & (jnp.arange(size) < at + half)
        for size, at in zip((height, width), middle, strict=True)
    )
    return rows[:, :, None] & columns[:, None, :]

"""Random affine distortions of digits, which run on the device."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


# Largest turn in radians, change of scale, slant, and shift in pixels.
TURN, SCALE, SLANT, SHIFT = 0.15, 0.1, 0.15, 1.5


def distort(key: jax.Array, images: jax.Array) -> jax.Array:
    """Turns, scales, slants and shifts each image by amounts of its own.

    Each amount is uniform, about none at all; pixels are interpolated linearly, and
    what comes from outside of an image is black.

    Args:
      key: of what is drawn.
      images: (n, height, width, channels), of any dtype.

    Returns:
      Images of the same shape, float32.

    Source:
      Simard et al. 2003 (Best practices for convolutional neural networks applied to
      visual document analysis), section 2.
    """
    count, height, width, _ = images.shape
    centre = jnp.array([height - 1, width - 1]) / 2
    grid = jnp.stack(jnp.mgrid[:height, :width], -1) - centre  # (height, width, 2)

    def one(image: jax.Array, drawn: jax.Array) -> jax.Array:
        turn, slant = TURN * drawn[0], SLANT * drawn[1]
        scale, shift = 1 + SCALE * drawn[2:4], SHIFT * drawn[4:]
        cos, sin = jnp.cos(turn), jnp.sin(turn)
        slanted = jnp.array([[1.0, 0.0], [slant, 1.0]])
        matrix = jnp.array([[cos, -sin], [sin, cos]]) @ slanted * scale
        points = jnp.moveaxis(grid @ matrix.T + centre + shift, -1, 0)
        of = lambda channel: map_coordinates(channel, [*points], order=1)
        return jax.vmap(of, -1, -1)(image.astype(jnp.float32))

    drawn = jax.random.uniform(key, (count, 6), minval=-1.0, maxval=1.0)
    return jax.vmap(one)(images, drawn)

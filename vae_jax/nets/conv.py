"""Convolutions that are fast on every backend: one set of parameters, two forms of the same sum.

    conv(x, k)[o]           = sum_i x[s o + i - p] k[i]                        x is 0 outside, p pixels pad the front
    conv_transpose(x, k)[m] = sum_{o, i : s o + i - p = m} x[o] k[i]           its transpose, a and b exchanged

XLA's convolution is fast on GPU and TPU. Its gradients on CPU are not: inside `lax.scan`, where training runs, they
reach 2-8 GFLOP/s where a matrix product reaches 200. So on CPU the sum is written as patches times a matrix.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Shaped

Form = Callable[..., Array]  # conv_native or conv_matrix
Size = tuple[int, int]


def conv_native(
    x: Float[Array, "n h w a"], kernel: Float[Array, "kh kw a b"], *, stride: int = 1
) -> Float[Array, "n oh ow b"]:
    """Convolution with SAME padding as XLA's own operation; oh = ceil(h / stride), ow = ceil(w / stride)."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def conv_matrix(
    x: Float[Array, "n h w a"], kernel: Float[Array, "kh kw a b"], *, stride: int = 1
) -> Float[Array, "n oh ow b"]:
    """The numbers of `conv_native` as a product of patches (n oh ow, kh kw a) and a matrix (kh kw a, b)."""
    (n, h, w, a), (kh, kw, _, b) = x.shape, kernel.shape
    oh, ow = halved((h, w), stride)
    # Split into stride * stride grids first, so that every tap is an unstrided slice of one of them. Gradients then add
    # small arrays and interleave once; strided slices would add arrays of full size, kh * kw of them.
    rows, columns = oh + (kh - 1) // stride, ow + (kw - 1) // stride
    margins = ((0, 0, 0), _margin(h, kh, stride, rows), _margin(w, kw, stride, columns), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), margins)
    grids = [
        [grid.reshape(n, rows, columns, a) for grid in lax.split(row, (1,) * stride, axis=4)]
        for row in lax.split(x.reshape(n, rows, stride, columns, stride, a), (1,) * stride, axis=2)
    ]
    taps = [
        grids[i % stride][j % stride][:, i // stride : i // stride + oh, j // stride : j // stride + ow]
        for i in range(kh)
        for j in range(kw)
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(kh * kw * a, b)


def halved(size: Size, stride: int = 2) -> Size:
    """The grid that a SAME convolution makes of a grid (h, w): its sizes divided by the stride, rounded up."""
    h, w = size
    return -(-h // stride), -(-w // stride)


def _margin(size: int, kernel: int, stride: int, rows: int) -> tuple[int, int, int]:
    """What to add before, after and between the pixels of an axis: SAME padding, up to rows * stride pixels in all."""
    before = max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2
    return before, rows * stride - before - size, 0


def transposed(
    form: Form, x: Float[Array, "n oh ow a"], kernel: Float[Array, "kh kw a b"], *, stride: int, size: Size
) -> Float[Array, "n h w b"]:
    """The linear transpose of the convolution `form` from b channels to a; (h, w) = size.

    <form(y, kernel^T), x> = <y, transposed(form, x, kernel)>, where kernel^T has its last two axes exchanged.
    """

    def forward(y):
        return form(y, kernel.swapaxes(2, 3), stride=stride)

    y = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype)
    return jax.linear_transpose(forward, y)(x)[0]


# jit: called outside of any jit, platform_dependent would compile anew at every call
@partial(jax.jit, static_argnames="stride")
def _conv(x, kernel, stride):
    by_platform = partial(lax.platform_dependent, x, kernel)
    return by_platform(cpu=partial(conv_matrix, stride=stride), default=partial(conv_native, stride=stride))


@partial(jax.jit, static_argnames=("stride", "size"))
def _conv_transpose(x, kernel, stride, size):
    by_platform = partial(lax.platform_dependent, x, kernel)
    make = partial(partial, transposed)
    return by_platform(
        cpu=make(conv_matrix, stride=stride, size=size), default=make(conv_native, stride=stride, size=size)
    )


def as_images(x: Array | np.ndarray, dtype: Any, name: str) -> Array:
    """A batch of images in the compute dtype, its rank checked."""
    if jnp.ndim(x) != 4:
        raise ValueError(
            f"{name} wants images (h, w, channels), got a shape {jnp.shape(x)[1:]}: reshape your data or use MLP"
        )
    return jnp.asarray(x, dtype)


class Conv(nn.Module):
    """Convolution with SAME padding: (n, h, w, a) to (n, ceil(h / stride), ceil(w / stride), features).

    Parameters are float32, `kernel` (kh, kw, a, features) and `bias` (features,), whatever the platform; inputs and
    parameters are cast to `dtype`, and so is the output.

    Raises:
        ValueError: the input is not a batch of images.
    """

    features: int
    kernel: Size = (3, 3)
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Shaped[Array | np.ndarray, "n h w a"]) -> Float[Array, "n oh ow b"]:
        x = as_images(x, self.dtype, "Conv")
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features))
        y = _conv(x, kernel.astype(self.dtype), self.stride)
        return _add_bias(self, y) if self.use_bias else y


class ConvTranspose(nn.Module):
    """The transpose of a SAME convolution: (n, oh, ow, a) to (n, h, w, features), where (oh, ow) is (h, w) / stride.

    Several sizes round up to the same (oh, ow) when divided: `size` says which (h, w) is wanted; by default the largest.
    The parameters are those of `Conv`, of shape (kh, kw, a, features).

    Raises:
        ValueError: the input is not a batch of images, or no convolution makes its grid of one of this size.
    """

    features: int
    kernel: Size = (3, 3)
    stride: int = 2
    size: Size | None = None
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Shaped[Array | np.ndarray, "n oh ow a"]) -> Float[Array, "n h w b"]:
        x = as_images(x, self.dtype, "ConvTranspose")
        _, oh, ow, a = x.shape
        size = self.size or (oh * self.stride, ow * self.stride)
        if halved(size, self.stride) != (oh, ow):
            raise ValueError(
                f"ConvTranspose makes a grid {size} of one of {halved(size, self.stride)} with stride {self.stride}, "
                f"got {(oh, ow)}: leave size out for {(oh * self.stride, ow * self.stride)}"
            )
        # an output pixel sees one in stride * stride of the taps
        init = nn.initializers.variance_scaling(self.stride**2, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (*self.kernel, a, self.features))
        y = _conv_transpose(x, kernel.astype(self.dtype), self.stride, size)
        return _add_bias(self, y) if self.use_bias else y


def _add_bias(module, y):
    bias = module.param("bias", nn.initializers.zeros, (module.features,))
    return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)

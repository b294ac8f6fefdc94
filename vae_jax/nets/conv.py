"""Convolutions that are fast on every backend: one set of parameters, two forms of the same sum.

    conv(x, k)[o]       = sum_i x[s o + i - p] k[i]             x is 0 outside; p pixels of padding
    transposed(x, k)[m] = sum_{o, i : s o + i - p = m} x[o] k[i]

XLA's convolution is fast on GPU and TPU. On CPU its gradients are not: inside `lax.scan`, where
training runs, they reach 1-8 GFLOP/s on cores where a matrix product reaches 200. There the sum is
written as patches times a matrix.
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

from vae_jax.nets.product import rows_times_matrix

Form = Callable[..., Array]  # conv_native or conv_matrix
Size = tuple[int, int]


def conv_native(
    x: Float[Array, "n h w a"], kernel: Float[Array, "kh kw a b"], *, stride: int = 1
) -> Float[Array, "n oh ow b"]:
    """Convolution with SAME padding, as XLA's own operation; oh = ceil(h / stride)."""
    numbers = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)


def conv_matrix(
    x: Float[Array, "n h w a"], kernel: Float[Array, "kh kw a b"], *, stride: int = 1
) -> Float[Array, "n oh ow b"]:
    """The numbers of `conv_native`, as patches (n oh ow, kh kw a) times a matrix (kh kw a, b)."""
    (n, h, w, a), (kh, kw, _, b) = x.shape, kernel.shape
    if stride == 1 and kh * a + kw * b < kh * kw * a + b:  # numbers a pixel that have to be written
        return _conv_columns(x, kernel)
    oh, ow = halved((h, w), stride)
    # Split into stride * stride grids first: every tap is then an unstrided slice of one of them,
    # and the gradient adds small arrays and interleaves once. Strided slices would make it add
    # kh * kw arrays of full size.
    rows, columns = oh + (kh - 1) // stride, ow + (kw - 1) // stride
    margins = (_margin(h, kh, stride, rows), _margin(w, kw, stride, columns))
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *margins, (0, 0, 0)))
    x = x.reshape(n, rows, stride, columns, stride, a)
    ones = (1,) * stride
    grids = [
        [grid.reshape(n, rows, columns, a) for grid in lax.split(row, ones, axis=4)]
        for row in lax.split(x, ones, axis=2)
    ]
    taps = [
        grids[i % stride][j % stride][:, i // stride : i // stride + oh, j // stride : j // stride + ow]
        for i, j in np.ndindex(kh, kw)
    ]
    return rows_times_matrix(jnp.concatenate(taps, axis=-1), kernel.reshape(kh * kw * a, b))


def _conv_columns(x: Float[Array, "n h w a"], kernel: Float[Array, "kh kw a b"]) -> Float[Array, "n h w b"]:
    """`conv_matrix` with stride 1: patches of one column (kh a), kw sums for each pixel, which are shifted and added.

    Twice 3 numbers a pixel and channel have to be written for a kernel of 3 x 3, in place of 9 and 1.
    """
    (_, h, _, a), (kh, kw, _, b) = x.shape, kernel.shape
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), _margin(h, kh, 1, h + kh - 1), (0, 0, 0), (0, 0, 0)))
    columns = jnp.concatenate([x[:, i : i + h] for i in range(kh)], axis=-1)
    sums = rows_times_matrix(columns, kernel.swapaxes(1, 2).reshape(kh * a, kw * b))
    left = (kw - 1) // 2
    shifted = [
        lax.pad(part, zero, ((0, 0, 0), (0, 0, 0), (left - j, j - left, 0), (0, 0, 0)))
        for j, part in enumerate(jnp.split(sums, kw, axis=-1))
    ]
    return sum(shifted[1:], shifted[0])


def halved(size: Size, stride: int = 2) -> Size:
    """The grid that a SAME convolution makes of a grid (h, w): h / stride, rounded up."""
    h, w = size
    return -(-h // stride), -(-w // stride)


def _margin(size: int, kernel: int, stride: int, blocks: int) -> tuple[int, int, int]:
    """SAME padding of one axis as lax.pad wants it, up to blocks * stride pixels in all."""
    before = max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2
    return before, blocks * stride - before - size, 0


def transposed(
    form: Form,
    x: Float[Array, "n oh ow a"],
    kernel: Float[Array, "kh kw a b"],
    *,
    stride: int,
    size: Size,
) -> Float[Array, "n h w b"]:
    """The linear transpose of the convolution `form` from b channels to a; size is (h, w).

    <form(y, k'), x> = <y, transposed(form, x, k)>, where k' is k with its last two axes exchanged.
    """

    y = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype)
    return jax.linear_transpose(lambda y: form(y, kernel.swapaxes(2, 3), stride=stride), y)(x)[0]


def _conv_matrix_rebuilt(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    return jax.checkpoint(partial(conv_matrix, stride=stride), prevent_cse=False)(x, kernel)


# The patches are built again for the gradient: keeping them costs more, several times the memory of x.
_FORMS = {"cpu": _conv_matrix_rebuilt, "default": conv_native}


# jit: outside of one, platform_dependent would compile anew at every call
@partial(jax.jit, static_argnames=("stride",))
def _conv(x, kernel, *, stride):
    forms = {name: partial(form, stride=stride) for name, form in _FORMS.items()}
    return lax.platform_dependent(x, kernel, **forms)


@partial(jax.jit, static_argnames=("stride", "size"))
def _conv_transpose(x, kernel, *, stride, size):
    forms = {name: partial(transposed, form, stride=stride, size=size) for name, form in _FORMS.items()}
    return lax.platform_dependent(x, kernel, **forms)


class Conv(nn.Module):
    """Convolution with SAME padding: (n, h, w, a) to (n, ceil(h / stride), ..., features).

    Parameters are float32 and the same on every platform: `kernel` (kh, kw, a, features) and `bias`
    (features,). The input, of any number type, and the parameters are cast to `dtype`, which the
    output has.

    Raises:
        ValueError: the input is not a batch of images.
    """

    features: int
    kernel: Size = (3, 3)
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Shaped[Array | np.ndarray, "n ..."]) -> Float[Array, "n oh ow b"]:
        x = as_images(x, self.dtype, "Conv")
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features))
        y = _conv(x, kernel.astype(self.dtype), stride=self.stride)
        return _add_bias(self, y) if self.use_bias else y


class ConvTranspose(nn.Module):
    """Transpose of a SAME convolution: (n, oh, ow, a) to (n, h, w, features).

    Several h have the same oh = ceil(h / stride): `size` is the (h, w) wanted, the largest if None.
    The parameters are those of `Conv`, `kernel` (kh, kw, a, features) and `bias` (features,).

    Raises:
        ValueError: the input is not a batch of images, or its grid does not belong to `size`.
    """

    features: int
    kernel: Size = (3, 3)
    stride: int = 2
    size: Size | None = None
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array | np.ndarray, "n ..."]) -> Float[Array, "n h w b"]:
        x = as_images(x, self.dtype, "ConvTranspose")
        _, oh, ow, a = x.shape
        largest = (oh * self.stride, ow * self.stride)
        size = largest if self.size is None else self.size
        if halved(size, self.stride) != (oh, ow):
            raise ValueError(
                f"ConvTranspose with stride {self.stride} makes size={size} of a grid "
                f"{halved(size, self.stride)}, got {(oh, ow)}: leave size out for {largest}"
            )
        # stride**2: an output pixel is reached by one in stride**2 of the taps
        scaled = nn.initializers.variance_scaling(self.stride**2, "fan_in", "truncated_normal")
        kernel = self.param("kernel", self.kernel_init or scaled, (*self.kernel, a, self.features))
        y = _conv_transpose(x, kernel.astype(self.dtype), stride=self.stride, size=size)
        return _add_bias(self, y) if self.use_bias else y


def as_images(x: Shaped[Array | np.ndarray, "..."], dtype: Any, name: str) -> Array:
    """A batch of images in the compute dtype.

    Raises:
        ValueError: x is not (n, h, w, channels); `name` is who wants that.
    """
    if x.ndim != 4:
        raise ValueError(
            f"{name} wants images (h, w, channels), got a shape {x.shape[1:]}: reshape your data or use MLP"
        )
    return jnp.asarray(x, dtype)


def _add_bias(module: Conv | ConvTranspose, y: Array) -> Array:
    bias = module.param("bias", nn.initializers.zeros, (module.features,))
    return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)

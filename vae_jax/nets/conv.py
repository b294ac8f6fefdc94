"""Convolutions that are fast on every backend: one set of parameters, and one sum in three directions.

    conv(x, k)[o]        = sum_i x[s o + i - p] k[i]            x is 0 outside; p pixels of padding
    to_input(y, k)[m]    = sum_{o, i : s o + i - p = m} y[o] k[i]'        the gradient of <y, conv(x, k)> in x
    to_kernel(x, y)[i]   = sum_o x[s o + i - p]' y[o]                     and in k

The gradient of each is the other two. XLA's convolution is fast on GPU and TPU in all of them. On CPU it is fast as it
stands, and the gradients that jax derives from it are not: inside `lax.scan`, where training runs, they reach 1-8
GFLOP/s on cores where a matrix product reaches 200. So there each direction has a form of its own: the convolution
itself, the one with the kernel turned round, and patches times a matrix, or on large grids the convolution of both
arrays transposed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float, Shaped

from vae_jax.nets.product import rows_plus_row, rows_times_matrix

Form = Callable[..., Array]
Size = tuple[int, int]
_NUMBERS = ("NHWC", "HWIO", "NHWC")
LARGE = 14  # pixels to a side: in the U-Net's scan, the gradient of a kernel by convolution is slower on 7 x 7


def conv_native(
    x: Float[Array, "n h w a"], kernel: Float[Array, "kh kw a b"], *, stride: int = 1
) -> Float[Array, "n oh ow b"]:
    """Convolution with SAME padding, as XLA's own operation; oh = ceil(h / stride)."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=_NUMBERS)


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


def to_input(
    form: Form, y: Float[Array, "n oh ow b"], kernel: Float[Array, "kh kw a b"], *, stride: int, size: Size
) -> Float[Array, "n h w a"]:
    """The transpose in x of the convolution `form`: <form(x, k), y> = <x, to_input(form, y, k)>; size is (h, w)."""
    x = jax.ShapeDtypeStruct((y.shape[0], *size, kernel.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: form(x, kernel, stride=stride), x)(y)[0]


def to_kernel(
    form: Form, x: Float[Array, "n h w a"], y: Float[Array, "n oh ow b"], *, stride: int, size: Size
) -> Float[Array, "kh kw a b"]:
    """The transpose in k of the convolution `form`: <form(x, k), y> = <k, to_kernel(form, x, y)>; size is (kh, kw)."""
    kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], y.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: form(x, kernel, stride=stride), kernel)(y)[0]


# On CPU


def _conv_on_cpu(x, kernel, *, stride):
    return conv_native(x, kernel) if _fast(x, stride) else conv_matrix(x, kernel, stride=stride)


def _to_input_on_cpu(y, kernel, *, stride, size):
    if not _fast(y, stride):
        return to_input(conv_matrix, y, kernel, stride=stride, size=size)
    ends = [(same // 2, (same - 1) // 2) for same in kernel.shape[:2]]
    return lax.conv_general_dilated(y, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), ends, dimension_numbers=_NUMBERS)


def _to_kernel_on_cpu(x, y, *, stride, size):
    if not (_fast(x, stride) and _fast(y, stride) and min(x.shape[1:3]) >= LARGE):
        return to_kernel(conv_matrix, x, y, stride=stride, size=size)
    # y is the kernel that x is convolved with: channels of x are the examples, and examples the channels summed over.
    ends = [((same - 1) // 2, same // 2) for same in size]
    turned = x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)
    return lax.conv_general_dilated(*turned, (1, 1), ends, dimension_numbers=_NUMBERS).transpose(1, 2, 0, 3)


def _fast(x: Array, stride: int) -> bool:
    """Whether XLA has a fast convolution of x: faster than products for 16 channels and more, not for 8 or less."""
    return stride == 1 and x.dtype == jnp.float32 and x.shape[-1] > 8


# Each direction is a primitive of arrays with a first axis more, of groups with a kernel each. Under vmap the batch
# joins the examples, as it does in a network for batches; where kernels differ, it joins the groups.


def _direction(name: str, shape: Callable[..., tuple], native: Form, on_cpu: Form, matrix: Form) -> Primitive:
    def in_groups(one: Form, many: Form):
        def run(first, second, **options):
            if len(first) == 1:
                return one(first[0], second[0], **options)[None]
            return jax.vmap(partial(many, **options))(first, second)

        return mlir.lower_fun(run, multiple_results=False)

    def batched(arguments, axes, **options):
        (first, second), (i, j) = arguments, axes
        if j is None and name != "conv_to_kernel":
            first = jnp.moveaxis(first, i, 1)
            joined = direction.bind(first.reshape(len(first), -1, *first.shape[3:]), second, **options)
            return joined.reshape(*first.shape[:3], *joined.shape[2:]), 1
        size = first.shape[i] if i is not None else second.shape[j]
        both = [
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in ((first, i), (second, j))
        ]
        joined = direction.bind(*(x.reshape(-1, *x.shape[2:]) for x in both), **options)
        return joined.reshape(size, -1, *joined.shape[1:]), 0

    direction = Primitive(name)
    direction.def_impl(jax.jit(direction.bind, static_argnames=("stride", "size")))
    direction.def_abstract_eval(lambda first, second, **options: first.update(shape=shape(first, second, **options)))
    mlir.register_lowering(direction, in_groups(native, native))
    mlir.register_lowering(direction, in_groups(on_cpu, matrix), platform="cpu")
    batching.primitive_batchers[direction] = batched
    return direction


_CONV = _direction(
    "conv",
    lambda x, kernel, stride: (*x.shape[:2], *halved(x.shape[2:4], stride), kernel.shape[-1]),
    conv_native,
    _conv_on_cpu,
    conv_matrix,
)
_TO_INPUT = _direction(
    "conv_to_input",
    lambda y, kernel, stride, size: (*y.shape[:2], *size, kernel.shape[-2]),
    partial(to_input, conv_native),
    _to_input_on_cpu,
    partial(to_input, conv_matrix),
)
_TO_KERNEL = _direction(
    "conv_to_kernel",
    lambda x, y, stride, size: (x.shape[0], *size, x.shape[-1], y.shape[-1]),
    partial(to_kernel, conv_native),
    _to_kernel_on_cpu,
    partial(to_kernel, conv_matrix),
)


def _grid(x: Any) -> Size:
    return x.aval.shape[2:4]


ad.defbilinear(
    _CONV,
    lambda ct, x, kernel, stride: _TO_INPUT.bind(ct, kernel, stride=stride, size=_grid(x)),
    lambda ct, x, kernel, stride: _TO_KERNEL.bind(x, ct, stride=stride, size=kernel.aval.shape[1:3]),
)
ad.defbilinear(
    _TO_INPUT,
    lambda ct, y, kernel, stride, size: _CONV.bind(ct, kernel, stride=stride),
    lambda ct, y, kernel, stride, size: _TO_KERNEL.bind(ct, y, stride=stride, size=kernel.aval.shape[1:3]),
)
ad.defbilinear(
    _TO_KERNEL,
    lambda ct, x, y, stride, size: _TO_INPUT.bind(y, ct, stride=stride, size=_grid(x)),
    lambda ct, x, y, stride, size: _CONV.bind(x, ct, stride=stride),
)


def conv(x: Float[Array, "n h w a"], kernel: Float[Array, "kh kw a b"], *, stride: int) -> Float[Array, "n oh ow b"]:
    """Convolution with SAME padding, in the form that is fast where it runs."""
    return _CONV.bind(x[None], kernel[None], stride=stride)[0]


def conv_transpose(
    x: Float[Array, "n oh ow a"], kernel: Float[Array, "kh kw a b"], *, stride: int, size: Size
) -> Float[Array, "n h w b"]:
    """The transpose of a convolution from b channels to a, likewise."""
    return _TO_INPUT.bind(x[None], kernel.swapaxes(2, 3)[None], stride=stride, size=size)[0]


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
        y = conv(x, jnp.asarray(kernel, self.dtype), stride=self.stride)
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
        y = conv_transpose(x, jnp.asarray(kernel, self.dtype), stride=self.stride, size=size)
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
    return rows_plus_row(y, jnp.asarray(bias, y.dtype))

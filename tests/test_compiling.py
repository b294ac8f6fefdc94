"""Programs with convolutions are compiled with options of their own on CPU; they are traced once all the same."""

import jax
import jax.numpy as jnp
import pytest

from vae_jax.core import compiling
from vae_jax.nets.conv import conv

IMAGE, KERNEL = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))


def convolved(image):
    return jax.lax.scan(lambda x, _: (jnp.tanh(conv(x, KERNEL, stride=1)), None), image, None, length=2)[0]


def multiplied(image):
    return image @ KERNEL[0, 0]


@pytest.mark.parametrize(("function", "asked"), [(convolved, 1), (multiplied, 0)])
def test_a_program_with_convolutions_has_options(monkeypatch, function, asked):
    seen, traced = [], []
    monkeypatch.setattr(compiling, "_without_ynnpack", lambda: seen.append(1) or {"xla_backend_optimization_level": 0})

    def counted(image):
        traced.append(image.shape)
        return function(image)

    run = compiling.Jit(counted, donate_argnums=())
    assert run.eval_shape(jax.ShapeDtypeStruct(IMAGE.shape, IMAGE.dtype)).shape == IMAGE.shape
    assert jnp.allclose(run(IMAGE), function(IMAGE)) and jnp.allclose(run(IMAGE), function(IMAGE))
    assert (len(seen), len(traced)) == (asked, 1)


def test_the_users_flags_win(monkeypatch):
    compiling._without_ynnpack.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=reduce")
    assert compiling._without_ynnpack() == {}
    compiling._without_ynnpack.cache_clear()


def test_an_option_that_is_not_known_is_left_out(monkeypatch):
    compiling._without_ynnpack.cache_clear()
    monkeypatch.setattr(compiling, "_OPTION", "xla_cpu_what_no_jaxlib_knows")
    assert compiling._without_ynnpack() == {}
    compiling._without_ynnpack.cache_clear()

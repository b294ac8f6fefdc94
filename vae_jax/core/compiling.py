"""How XLA compiles a training step, where its own choice is slow.

On CPU jaxlib 0.10 hands parts of a program to YNNPACK. XLA's own convolutions then take up to twice as long on two
cores (28 x 28 x 32: 55 and 100 GFLOP/s; the U-Net of `make bench`: 30 and 45 images a second), while a language model
gains some 10 %. Delete this file once that U-Net is as fast without it.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

_OPTION = "xla_cpu_experimental_ynn_fusion_type"


class Jit:
    """`jax.jit(function, **options)`, with the compiler options that suit what the function computes."""

    def __init__(self, function: Callable[..., Any], **options: Any):
        self._function, self._options = function, options
        self._jitted: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self._for(arguments)(*arguments)

    def eval_shape(self, *arguments: Any) -> Any:
        """Shapes of the result, for arguments or their shapes."""
        return jax.eval_shape(self._for(arguments), *arguments)

    def _for(self, arguments: tuple[Any, ...]) -> Any:
        """The choice is made once: it does not depend on shapes."""
        if self._jitted is None:
            self._jitted = jax.jit(self._function, **self._options)
            if "conv" in set(_primitives(self._jitted.trace(*arguments).jaxpr.jaxpr)):
                self._jitted = jax.jit(self._function, compiler_options=_without_ynnpack(), **self._options)
        return self._jitted


@functools.cache
def _without_ynnpack() -> dict[str, Any]:
    """Nothing on other devices than CPU, where XLA_FLAGS say otherwise, and where this jaxlib has no such option."""
    if jax.default_backend() != "cpu" or _OPTION in os.environ.get("XLA_FLAGS", ""):
        return {}
    options = {_OPTION: ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in inner_jaxprs(equation.params):
            yield from _primitives(inner)


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an equation with these parameters: bodies of loops, branches, what is jitted."""
    for value in jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value

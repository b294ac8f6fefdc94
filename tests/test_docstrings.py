"""The examples in docstrings, `>>>`, run and print what they say. The reference shows them."""

import doctest
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_reference import FOLDERS

import vae_jax
from vae_jax import data, nets, parts

# What the reference says that examples assume.
ASSUMED = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "nets": nets, "data": data, "parts": parts}
ASSUMED |= {name: getattr(vae_jax, name) for name in vae_jax.__all__}


def examples() -> dict[str, doctest.DocTest]:
    """{full name: example} of every public function whose docstring has one."""
    found: dict[str, doctest.DocTest] = {}
    seen = set()
    for folder in reversed(FOLDERS):
        module = importlib.import_module(folder)
        names = {name: getattr(module, name) for name in module.__all__}
        for name, value in names.items():
            text = inspect.getdoc(value) if inspect.isroutine(value) or hasattr(value, "__wrapped__") else None
            if text and ">>>" in text and id(value) not in seen:
                seen.add(id(value))
                found[f"{folder}.{name}"] = doctest.DocTestParser().get_doctest(text, ASSUMED | names, name, folder, 0)
    return found


@pytest.fixture(autouse=True)
def as_for_readers():
    """Ranks are promoted, where the other tests refuse to."""
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_rank_promotion", "raise")


def test_the_names_that_are_met_first_have_examples():
    names = {test.name for test in examples().values()}
    first = "vae fit evaluate l2 gaussian conditional open_run load load_table dynamic_binarisation free_bits fit_em"
    assert names >= {*first.split(), "importance_weighted_bound", "diffusion", "vq_vae", "ladder", "coupling_flow"}
    assert len(names) >= 25


def test_every_example_runs():
    failures: list[str] = []
    for name, test in examples().items():
        output: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=output.append)
        failures += [f"{name}\n{''.join(output)}"] if output else []
    assert not failures, "\n".join(failures)

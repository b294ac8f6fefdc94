"""The reference has every public name, each on one page, and nothing that is gone."""

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import vae_jax

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs/reference").glob("*.md"))
INITS = [path for path in sorted((ROOT / "vae_jax").rglob("__init__.py")) if "__all__" in path.read_text()]
FOLDERS = [".".join(path.parent.relative_to(ROOT).parts) for path in INITS]

# What public functions take or return, and what no folder lists: documented beside them.
BESIDE = {
    "vae_jax.core.model.Coder",
    "vae_jax.core.model.Latent",
    "vae_jax.diffusion.schedules.Level",
    "vae_jax.em.factor_models.ClosedForm",
    "vae_jax.em.sequences.forward_backward.Filtered",
    "vae_jax.em.sequences.forward_backward.Smoothed",
    "vae_jax.em.sequences.kalman.Filtered",
    "vae_jax.em.sequences.kalman.GaussianChain",
    "vae_jax.em.sequences.markov_chain.MarkovChain",
    "vae_jax.parts.flows.bijection.Bijection",
    "vae_jax.parts.flows.bijection.FlowOptions",
    "vae_jax.training.recipes.Built",
    "vae_jax.training.step.StepOptions",
    "vae_jax.vq.codebooks.Update",
    "vae_jax.report.page",
    "vae_jax.report.pictures",
    "vae_jax.selfcheck.check",
    "vae_jax.selfcheck.solvable",
}


def documented() -> Counter[str]:
    directives = re.compile(r"^\.\. auto(?:function|class|data|module):: (\S+)$", flags=re.MULTILINE)
    return Counter(name for page in PAGES for name in directives.findall(page.read_text()))


def value(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, short = name.rpartition(".")
        return getattr(importlib.import_module(module), short)


def test_every_public_name_is_on_one_page():
    pages = documented()
    assert [name for name, times in pages.items() if times > 1] == []
    for folder in FOLDERS:
        for name in importlib.import_module(folder).__all__:
            it = value(f"{folder}.{name}")
            homes = [each for each in pages if each.rpartition(".")[2] == name and value(each) is it]
            assert len(homes) == 1, f"{folder}.{name} is documented at {homes}"


def test_what_is_documented_is_public():
    for name in documented():
        module, _, short = name.rpartition(".")
        assert name in BESIDE or short in importlib.import_module(module).__all__, name
        assert value(name) is not None, name
    assert documented().keys() >= BESIDE


def test_the_first_page_names_all_that_vae_jax_has():
    page = (ROOT / "docs/reference/vae_jax.md").read_text()
    linked = dict(re.findall(r"^\| \[`(\w+)`\]\(#(vae_jax\.[\w.]+)\)", page, flags=re.MULTILINE))
    assert set(linked) | {"__version__"} == set(vae_jax.__all__)
    assert all(value(target) is getattr(vae_jax, name) and target in documented() for name, target in linked.items())


def test_every_public_name_has_a_docstring():
    for folder in FOLDERS:
        module = importlib.import_module(folder)
        for name in module.__all__:
            if inspect.isroutine(getattr(module, name)) or inspect.isclass(getattr(module, name)):
                assert inspect.getdoc(getattr(module, name)), f"{folder}.{name}"

"""The site, built by `make docs`: pages of MyST Markdown whose code runs when they are built, and colab/ as pages.

Nothing is asked of another host: formulas are MathML, fonts the reader's own.
"""

import os
import re
import sys
from importlib import metadata
from pathlib import Path

from docutils.nodes import SkipNode
from jupyter_cache import get_cache
from latex2mathml.converter import convert

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the experiments, for the pages on them; api.py
os.environ["PYTHONPATH"] = str(ROOT)  # the same for the kernels
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all of a page's time is compiling: the elder code generator takes half of it (see tests/conftest.py, which says
# when this can go). Pages that speak of speed say that they were built so.
if metadata.version("jaxlib").startswith(("0.7.", "0.10.")):
    in_haste = ("backend_optimization_level=0", "llvm_disable_expensive_passes=true", "cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in in_haste))
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm without ipywidgets

from vae_jax import __version__ as release  # noqa: E402

project, author = "vae_jax", "the vae_jax authors"
copyright = "the vae_jax authors, Apache-2.0"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton", "api"]
exclude_patterns = ["_build", "README.md"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!vae_jax).*")]  # what others define has its own documentation

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # what has not changed is not run again
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables and formulas in what a cell shows

autodoc_member_order = "bysource"
default_role = "vae_jax"  # a name in a docstring: api.py has more on how they are read
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88
napoleon_custom_sections = [("Fields", "params_style"), ("Keys", "params_style")]
add_module_names = False

html_theme = "furo"
html_title = f"vae_jax {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False


def mathml(self, node, display):
    """A formula as MathML, which browsers draw themselves.

    latex2mathml knows `aligned` by another name, and sets no space after a function.
    """
    formula = convert(node.astext().replace("{aligned}", "{align*}"), display=display)
    self.body.append(re.sub(r"<mi>(ln|log|exp)</mi>", r'<mi>\1</mi><mspace width="0.17em" />', formula))


def inline_math(self, node):
    mathml(self, node, "inline")
    raise SkipNode


def display_math(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math"))
    mathml(self, node, "block")
    self.body.append("</div>")
    raise SkipNode


def make_cache(app):
    """jupyter_cache makes its tables when first asked: two pages that do so at the same time would fail."""
    get_cache(app.env.mystnb_config.execution_cache_path).get_cache_limit()


def setup(app):
    app.connect("builder-inited", make_cache)  # after myst_nb's own, which knows the path
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))


html_math_renderer = "mathml"

"""The reference as people read it: signatures as they are written, a home for each object, names as links.

A name is documented in one place, the folder whose page has it. `vae_jax.fit`, `vae_jax.training.fit` and
`vae_jax.training.loop.fit` are one object, and a link to any of them leads there.
"""

import ast
import functools
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Literal, get_origin

from docutils import nodes
from docutils.utils import unescape
from sphinx.addnodes import pending_xref
from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

NAME = re.compile(r"([A-Za-z_][\w.]*)(\(\))?")
SECTION = re.compile(r"(Args|Fields|Keys|Raises|Returns|Yields|Example|Examples):$")


def source_of(obj):
    """The syntax tree of a function or a class, without decorators around it."""
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    return ast.parse(text).body[0]


def written(argument: ast.arg, default: ast.expr | None, stars: str = "") -> str:
    text = stars + argument.arg
    if argument.annotation is not None:
        text += f": {spelt(argument.annotation)}"
    if default is not None:
        text += f"{' = ' if argument.annotation is not None else '='}{ast.unparse(default)}"
    return text


def spelt(annotation: ast.expr) -> str:
    """An annotation, which may be a string."""
    whole = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return annotation.value if whole else ast.unparse(annotation)


def of_function(node: ast.FunctionDef, bound: bool) -> str:
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + given.defaults
    texts = [written(*pair) for pair in zip(plain, defaults, strict=True)][bound:]
    if given.vararg:
        texts.append(written(given.vararg, None, "*"))
    elif given.kwonlyargs:
        texts.append("*")
    texts += [written(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        texts.append(written(given.kwarg, None, "**"))
    return f"({', '.join(texts)})"


def of_class(node: ast.ClassDef) -> str:
    """The fields of a named tuple or a module with their defaults; of other classes what `__init__` takes."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return of_function(child, bound=True)
    fields = [x for x in node.body if isinstance(x, ast.AnnAssign) and not x.target.id.startswith("_")]
    text = "(" + ", ".join(x.target.id + (f"={ast.unparse(x.value)}" if x.value else "") for x in fields) + ")"
    told = any("NamedTuple" in ast.unparse(base) for base in node.bases)  # each field again, in the docstring
    return "" if told and len(text) > 72 else text


class Spelt(ast.NodeTransformer):
    """Constants and lists of choices in place of their names: `floor: float = 1e-06`, `Literal["full", "tied"]`."""

    def __init__(self, names: dict[str, object]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self.names.get(node.id)
        if node.id.isupper() and isinstance(value, int | float | str | tuple):
            return ast.parse(repr(value), mode="eval").body
        if get_origin(value) is Literal:
            return ast.parse(repr(value).removeprefix("typing."), mode="eval").body
        if isinstance(value, type) and value.__module__.startswith("vae_jax."):
            node.id = f"~{value.__module__}.{value.__qualname__}"  # Sphinx shows what is after the last point
        return node


def signature(app, what, name, obj, options, arguments, returns):
    """As in the source: `estimator: Estimator = sampled`, not what these names stand for."""
    if arguments is None or what not in ("function", "method", "class"):
        return None
    try:
        obj = inspect.unwrap(obj)
        node = source_of(obj)
    except (OSError, TypeError, SyntaxError):
        return None
    if isinstance(node, ast.ClassDef):
        return of_class(node), None
    if not isinstance(node, ast.FunctionDef):
        return None
    names = Spelt(obj.__globals__)
    node.args = names.visit(node.args)
    return of_function(node, what == "method"), node.returns and spelt(names.visit(node.returns))


@functools.cache
def imported(module: str) -> dict[str, str]:
    """{name: the module that `module` has it from}."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module for node in found for alias in node.names if node.module != module}


def comment(name: str) -> list[str] | None:
    """The string below an assignment, where the name of a value is assigned."""
    module, _, short = name.rpartition(".")
    try:
        while short in imported(module):
            module = imported(module)[short]
        return ModuleAnalyzer.for_module(module).find_attr_docs().get(("", short))
    except (PycodeError, ImportError, TypeError, OSError):
        return None


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain text: bars and stars are signs, and what stands indented by itself is code or a formula."""
    if what == "data":
        lines[:] = comment(name) or lines
    lines[:] = ["Args:" if line == "Args (and attributes):" else line for line in lines]
    done: list[str] = []
    section = verbatim = doctest = False
    for i, line in enumerate(lines):
        blank, indented = not line.strip(), line.startswith(" ")
        if not blank and not indented:
            section, verbatim = bool(SECTION.match(line)), False
        if not blank and indented and not section and not verbatim and i and not lines[i - 1].strip():
            done += ["::", ""]
            verbatim = True
        doctest = not blank and (doctest or line.lstrip().startswith(">>>"))
        done.append(line if verbatim or doctest else re.sub(r"(?<!\\)([|*])", r"\\\1", line))
    lines[:] = done


def fields(app, what, name, obj, skip, options):
    """The fields of a named tuple are told in its docstring."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def folders() -> list[str]:
    """The folders that list their names, the first page of the package at the end."""
    import vae_jax

    package = Path(vae_jax.__file__).parent
    listed = [path.parent for path in sorted(package.rglob("__init__.py")) if "__all__" in path.read_text()]
    return [".".join(("vae_jax", *path.relative_to(package).parts)) for path in reversed(listed)]


def aliases(app, env):
    """Every other path of an object that is documented leads to it as well."""
    domain, listed = env.get_domain("py"), folders()
    homes = {}
    for name in [name for name, entry in domain.objects.items() if not entry.aliased]:
        module, _, short = name.rpartition(".")
        if module in listed:
            homes[short, id(getattr(importlib.import_module(module), short))] = name
    for module in listed:
        for short in importlib.import_module(module).__all__:
            home = homes.get((short, id(getattr(importlib.import_module(module), short))))
            where = module
            while home:
                if f"{where}.{short}" not in domain.objects:
                    domain.objects[f"{where}.{short}"] = domain.objects[home]._replace(aliased=True)
                if short not in imported(where):
                    break
                where = imported(where)[short]


def role(name, rawtext, text, lineno, inliner, options=None, content=()):
    """`name` in a docstring: a link where it is one of ours, code elsewhere."""
    text = unescape(text)
    whole = NAME.fullmatch(text)
    code = nodes.literal(rawtext, text, classes=["code"])
    if not whole:
        return [code], []
    env = inliner.document.settings.env
    module = env.ref_context.get("py:module", "vae_jax")
    xref = pending_xref(
        rawtext, code, refdomain="", reftype="vae_jax", reftarget=whole[1], refdoc=env.docname, module=module
    )
    return [xref], []


def missing(app, env, node, content):
    """A name as it stands in a docstring or a signature: of its folder, of the first page, or, a type, of any."""
    objects = env.get_domain("py").objects
    target = node.get("reftarget", "")
    if node.get("reftype") == "vae_jax":
        names = [target, f"{node['module']}.{target}", f"vae_jax.{target}"]
    elif node.get("refdomain") == "py" and re.fullmatch(r"(\w+\.)*[A-Z]\w*", target):
        module = node.get("py:module") or "vae_jax"
        names = [target, f"{module}.{target}", *sorted(n for n in objects if n.endswith(f".{target}"))]
    else:
        return None
    for name in names:
        if name in objects and name != node.get("self"):
            where = objects[name]
            return make_refnode(app.builder, node["refdoc"], where.docname, where.node_id, content, name)
    return content if node.get("reftype") == "vae_jax" else None


def setup(app):
    app.add_role("vae_jax", role)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", fields)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon reads them
    app.connect("env-updated", aliases)
    app.connect("missing-reference", missing)
    return {"parallel_read_safe": True}

"""The house as a picture: folders on their floors, arrows as the imports are. Read with ast; nothing is imported."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vae_jax"
WIDTH, STEP, HIGH, WIDE = 440, 66, 30, 92


def floors() -> list[list[str]]:
    """The folders on each floor, the ground first: the list that tests/test_architecture.py keeps."""
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text())
    (value,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "FLOORS")
    return [[room for room in ast_set if (PACKAGE / room).is_dir()] for ast_set in map(names_of, value.elts)]


def names_of(node: ast.Set) -> list[str]:
    return [element.value for element in node.elts]


def imports(room: str) -> dict[str, int]:
    """{folder: how many lines of this one import from it}, imports inside functions included."""
    found: dict[str, int] = {}
    for file in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                top, _, rest = module.partition(".")
                other = rest.split(".")[0]
                if top == "vae_jax" and other != room and (PACKAGE / other).is_dir() and other:
                    found[other] = found.get(other, 0) + 1
    return found


def arrows() -> dict[str, dict[str, int]]:
    return {room: imports(room) for floor in floors() for room in floor}


def needed(all_arrows: dict[str, dict[str, int]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others: where a imports b and b imports c, a may import c as well."""

    def reached(room: str) -> set[str]:
        return {far for near in all_arrows[room] for far in (near, *reached(near))}

    return [
        (room, other)
        for room, others in all_arrows.items()
        for other in others
        if not any(other in reached(between) for between in others if between != other)
    ]


def picture(links: str = "") -> str:
    """An SVG in the colours of the page. `links` is a template of addresses, "{}.html", or nothing."""
    levels = [floor for floor in floors() if floor]
    top = len(levels) - 1
    at = {}
    for level, floor in enumerate(levels):
        for i, room in enumerate(floor):
            at[room] = (WIDTH * (i + 0.5) / len(floor) if len(floor) > 1 else WIDTH / 2, (top - level) * STEP + 20)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {top * STEP + HIGH + 40}" role="img" aria-label="The folders of vae_jax on their '
        'floors, with arrows from each to those that it imports" style="width: 100%; max-width: 40rem; color: '
        'var(--color-foreground-primary, currentColor)" font-family="inherit" font-size="13" text-anchor="middle">',
        '<defs><marker id="down" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 1 L7 4 L0 7 Z" fill="currentColor"/></marker></defs>',
    ]
    for room, other in needed(arrows()):
        (x, y), (u, v) = at[room], at[other]
        y, v = y + HIGH, v - 1
        bend = (v - y) / 2
        parts.append(
            f'<path d="M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {u:.0f} {v - bend:.0f} {u:.0f} {v:.0f}" fill="none" '
            'stroke="currentColor" stroke-opacity="0.55" marker-end="url(#down)"/>'
        )
    for room, (x, y) in at.items():
        box = (
            f'<rect x="{x - WIDE / 2:.0f}" y="{y:.0f}" width="{WIDE}" height="{HIGH}" rx="5" '
            'fill="var(--color-background-secondary, Canvas)" stroke="currentColor" stroke-opacity="0.7"/>'
            f'<text x="{x:.0f}" y="{y + 19.5:.0f}" fill="currentColor">{room}</text>'
        )
        parts.append(f'<a href="{links.format(room)}">{box}</a>' if links else box)
    return "".join([*parts, "</svg>"])


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in the looks of the site."""
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div class="table-wrapper docutils container"><table class="docutils align-default">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )

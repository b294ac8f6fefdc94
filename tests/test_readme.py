"""What the README and the other papers say is true: the README's code runs, make targets and linked files exist."""

import re
import tomllib
from pathlib import Path

import vae_jax

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAPERS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("[!_]*/*.md")]


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_example_is_short():
    lines = [line for line in blocks()[0].splitlines() if line.strip()]
    assert len(lines) <= 14


def test_every_block_of_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    names: dict[str, object] = {}
    for number, code in enumerate(blocks()):
        exec(compile(code, f"README.md, block {number + 1}", "exec"), names)
    assert re.search(
        r"^ELBO -\d+\.\d ± \d\.\d nats; ln P\(y\) is at least -", capsys.readouterr().out, flags=re.MULTILINE
    )
    assert list(tmp_path.iterdir()) == []


def test_every_make_target_exists():
    found = re.findall(r"`make ([\w-]+)`|^(?: +|\$ )make ([\w-]+)", "\n".join(map(Path.read_text, PAPERS)), flags=re.M)
    named = {a or b for a, b in found}
    makefile = (ROOT / "Makefile").read_text()
    assert {"train", "test", "test-all", "docs", "bench", "tpu"} <= named
    assert [name for name in named if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)] == []


def test_every_file_that_is_linked_exists():
    """Of the papers beside the README; the links of the site are followed where it is built."""
    links = [
        (paper.name, link)
        for paper in ROOT.glob("*.md")
        for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", paper.read_text())
    ]
    assert links
    assert [(paper, link) for paper, link in links if not (ROOT / link).exists()] == []


def test_papers_name_this_version():
    assert f"\nversion: {vae_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {vae_jax.__version__}," in (ROOT / "CHANGELOG.md").read_text()


def test_the_address_of_the_repository_is_one():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    named = {
        f"https://github.com/{match}"
        for paper in (ROOT / "CITATION.cff", *PAPERS, *(ROOT / "colab").glob("*.ipynb"))
        for match in re.findall(r"github(?:\.com|)/(?!googlecolab)([\w-]+/vae_jax)\b", paper.read_text())
    }
    assert named == {urls["Repository"]}

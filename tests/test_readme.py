"""What the README says is true: its code runs, its make targets and its tests exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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
    assert len(blocks()) >= 3
    assert re.search(
        r"^ELBO -\d+\.\d ± \d\.\d nats; ln P\(y\) is at least -", capsys.readouterr().out, flags=re.MULTILINE
    )
    assert list(tmp_path.iterdir()) == []


def test_every_make_target_exists():
    targets = set(re.findall(r"`make (\w+)`|^ +make (\w+)", README, flags=re.MULTILINE))
    named = {a or b for a, b in targets}
    makefile = (ROOT / "Makefile").read_text()
    assert {"train", "test", "bench"} <= named
    assert all(re.search(rf"^{name}:", makefile, flags=re.MULTILINE) for name in named)


def test_every_test_of_the_lecture_table_exists():
    rows = README.split("## The lecture")[1].split("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", rows)) - {"test_lecture"}
    defined = set(re.findall(r"^def (test_\w+)", (ROOT / "tests" / "test_lecture.py").read_text(), flags=re.MULTILINE))
    assert len(named) >= 15
    assert named <= defined, named - defined


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

"""Keeps of a run directory what the site shows of it: python docs/results/collect.py RUN [SECTION[:N] ...]

The numbers and how they were made (numbers.json, made.json), and the pictures of the named sections of its report, or
the N-th of one; those of the first where none is named. They go to docs/results/kept/, from where the pages read them.
"""

import base64
import json
import re
import sys
from html import unescape
from pathlib import Path

HERE = Path(__file__).parent / "kept"
SECTION = re.compile(r"<section>\s*<div><h2>(.*?)</h2>(.*?)</section>", re.DOTALL)
PICTURE = re.compile(r'<img src="data:image/(png|svg)[^,]*,([^"]*)" alt="([^"]*)">')


def collect(run: Path, wanted: list[str]) -> None:
    made, report = json.loads((run / "made.json").read_text()), (run / "report.html").read_text()
    name = made[-1]["command"].split()[2].split(".")[-1]
    sections = [(unescape(title), PICTURE.findall(body)) for title, body in SECTION.findall(report)]
    drawn = [title for title, pictures in sections if pictures]
    if missing := {each.split(":")[0] for each in wanted} - set(drawn):
        sys.exit(f"{run}: no pictures in a section {sorted(missing)}; there are {drawn}")
    HERE.mkdir(exist_ok=True)
    shown = []
    for title, number, (kind, data, alt) in [(t, i + 1, p) for t, ps in sections for i, p in enumerate(ps)]:
        if {title, f"{title}:{number}"} & set(wanted or drawn[:1]):
            file = HERE / f"{name}-{len(shown) + 1}.{kind}"
            file.write_bytes(base64.b64decode(data))
            shown.append({"file": f"kept/{file.name}", "section": title, "alt": unescape(alt)})
    title, lead = map(unescape, re.search(r"<h1>(.*?)</h1><p>(.*?)</p>", report).groups())
    numbers = json.loads((run / "numbers.json").read_text())
    kept = {"title": title, "lead": lead, "made": made[-1], "numbers": numbers, "pictures": shown}
    (HERE / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    collect(Path(sys.argv[1]), sys.argv[2:])

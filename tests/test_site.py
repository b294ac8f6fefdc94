"""The site says of every equation of the lecture which test shows it, on one page."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
LECTURE = ROOT / "docs" / "lecture"
TESTS = set(re.findall(r"^def (test_\w+)", (ROOT / "tests" / "test_lecture.py").read_text(), re.M))


def named(text):
    return set(re.findall(r"`(test_\w+)`", text))


def test_every_test_of_the_lecture_is_named_on_one_page():
    pages = {page.name: named(page.read_text()) for page in LECTURE.glob("*.md") if page.name != "index.md"}
    count = Counter(test for tests in pages.values() for test in tests)
    assert count == dict.fromkeys(TESTS, 1)
    for line in (LECTURE / "index.md").read_text().splitlines():
        linked = re.findall(r"\]\((\w+\.md)", line) if named(line) else []
        for page in linked:  # a row of the table: its tests are on the page that it links
            assert named(line) <= pages[page], line

"""docs/speed.md is made from the results next to it."""

from hawaii.benchmarks.page import write_page
from hawaii.tests.documents import ROOT, read


def test_the_page_is_made_from_its_results(tmp_path):
    write_page(ROOT / "docs/speed", tmp_path / "speed.md")
    text = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert text == read("docs/speed.md")
    assert "\n## " in text and "**It failed.**" not in text

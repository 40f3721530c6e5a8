"""What a document links to is there."""

import pytest

from hawaii.tests.documents import ROOT, links


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda document: document.name)
def test_every_file_that_a_document_names_is_there(document):
    found = links(document.read_text(encoding="utf-8"))
    assert all((document.parent / link).is_file() for link in found)

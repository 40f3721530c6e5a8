"""What a document links to is there, and its commands are commands in any shell."""

import pytest

from hawaii.tests.documents import ROOT, blocks, links


DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "README.md"], ids=lambda document: document.name)
def test_no_command_has_a_comment_after_it(document):
    """At zsh's prompt, macOS's, `#` begins none: its words would be the command's."""
    lines = [line for block in blocks(document.read_text(encoding="utf-8"), "bash") for line in block.splitlines()]
    assert not [line for line in lines if "#" in line]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_file_that_a_document_names_is_there(document):
    found = links(document.read_text(encoding="utf-8"))
    assert all((document.parent / link).is_file() for link in found)

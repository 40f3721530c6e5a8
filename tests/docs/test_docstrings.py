"""The site's reader of docstrings in Hugging Face's form."""

import importlib.util
import textwrap

import griffe
import pytest

from hawaii.tests.documents import ROOT


@pytest.fixture(scope="module")
def docstrings():
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "website" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections_of(docstrings, docstring, signature="width=3, first=None, second=None, **kwargs"):
    body = textwrap.indent(f'"""Text.\n\n{docstring}"""', "    ")
    with griffe.temporary_visited_module(f"def f({signature}) -> int:\n{body}") as module:
        function = module["f"]
        return {section.kind.value: section.value for section in docstrings.parse(function.docstring.value, function)}


ITEM = """\
Args:
    width (`torch.Tensor` of shape `(2, 3)`, *optional*, defaults to `1`):
        One.
        Two.
"""
SEVERAL = """\
Args:
    first (`str` or `int`), second,
    **kwargs:
        Any.
"""
RESULTS = """\
Returns:
    `list[int]`: the numbers.

Raises:
    ValueError: `x` is wrong,
        or missing.
"""


def test_an_item_has_type_shape_default_and_lines(docstrings):
    (item,) = sections_of(docstrings, ITEM)["parameters"]
    assert (item.name, str(item.annotation), item.default) == ("width", "torch.Tensor", "1")
    assert item.description == "Shape `(2, 3)`. One.\nTwo."


def test_names_of_one_item_are_rows_of_their_own(docstrings):
    items = sections_of(docstrings, SEVERAL)["parameters"]
    assert [item.name for item in items] == ["first", "second", "**kwargs"]
    assert str(items[0].annotation) == "str | int" and {item.description for item in items} == {"Any."}


def test_what_the_docstring_leaves_out_is_that_of_the_signature(docstrings):
    (item,) = sections_of(docstrings, "Args:\n    width:\n        W.\n", "width: int = 3")["parameters"]
    assert (str(item.annotation), item.default) == ("int", "3")


def test_results_and_errors_have_their_types(docstrings):
    sections = sections_of(docstrings, RESULTS)
    assert [(str(item.annotation), item.description) for item in sections["returns"]] == [
        ("list[int]", "The numbers.")
    ]
    assert [str(item.annotation) for item in sections["raises"]] == ["ValueError"]
    (item,) = sections_of(docstrings, "Returns:\n    The sum.\n")["returns"]
    assert (str(item.annotation), item.description) == ("int", "The sum.")


def test_a_line_that_is_no_item_is_an_error(docstrings):
    with pytest.raises(ValueError, match="no items: 'width is a number'"):
        sections_of(docstrings, "Args:\n    width is a number\n")

"""Markdown tables are aligned as plain text."""

from hawaii.files.markdown_table import markdown_table


def test_the_columns_of_a_table_are_aligned():
    lines = markdown_table(["", "a"], [["x", "1.0"], ["long", "10.0"]]).splitlines()
    assert lines == ["|      |    a |", "| ---- | ---: |", "| x    |  1.0 |", "| long | 10.0 |"]


def test_several_columns_may_be_text():
    lines = markdown_table(["a", "b", "c"], [["x", "longer", "1"]], num_text_columns=2).splitlines()
    assert lines == ["| a | b      |  c |", "| - | ------ | -: |", "| x | longer |  1 |"]


def test_titles_and_texts_are_shown_as_they_are_and_numbers_keep_their_markup():
    table = markdown_table(["*a*|b", "<b>n</b>"], [["one\ntwo | [x](y)", "**1**"]])
    assert table.splitlines() == [
        r"| \*a\*\|b            | &lt;b&gt;n&lt;/b&gt; |",
        "| ------------------- | -------------------: |",
        r"| one two \| \[x\](y) |                **1** |",
    ]

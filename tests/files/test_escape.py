"""Escaped names are shown unchanged, and nothing in them becomes markup."""

import pytest
from markdown_it import MarkdownIt

from hawaii.files.escape import escape_link, escape_markdown, flatten, flatten_all, show_controls


NAMES = [
    "clip-vit-large_patch14.336",
    "**bold** and *slanted* or __bold__ and _slanted_",
    "[click](https://evil.example)",
    "![image](https://evil.example/x.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a &lt;b&gt; & c",
    "a | b || c",
    "`code` and ```more```",
    "back\\slash \\*",
    "https://evil.example and www.evil.example",
    "~~gone~~ # no heading #",
    "<!-- comment",
    "{{ name }} {% if x %}",
    "$a$ @somebody [ref]: x",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name):
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for document in (f"# {escape_markdown(name)}", f"| {escape_markdown(name)} | 1 |\n|---|---|\n"):
        tokens = [child for token in markdown.parse(document) for child in token.children or []]
        text = "".join(token.content for token in tokens if token.type in ("text", "text_special"))
        assert {token.type for token in tokens} <= {"text", "text_special"}
        assert text.removesuffix("1") == name


@pytest.mark.parametrize("name", ["a\n# heading", "a\r\n\r\n---\r\n", "a\u2028b", "a\x00b\u202ec", "\n\n\ttext\n"])
def test_a_name_is_one_line_that_can_be_seen(name):
    for text in (escape_markdown(name), flatten(name)):
        assert text.isprintable() and text == text.strip() and "\n" not in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("easy_vqa clip-vit-large.336 (2)", "easy_vqa clip-vit-large.336 (2)"),
        ("**a** _b_", r"\*\*a\*\* \_b\_"),
        ("[a](b)", r"\[a\](b)"),
        ("<b> & a|b", r"&lt;b&gt; &amp; a\|b"),
        ("a\n# b", r"a \# b"),
    ],
)
def test_what_could_be_markup_is_escaped_and_nothing_else(name, expected):
    assert escape_markdown(name) == expected


def test_links_are_not_found_in_a_name():
    escaped = escape_markdown("https://evil.example www.evil.example mailto:x")
    assert "://" not in escaped and "www." not in escaped.lower() and "mailto:" not in escaped


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://example.org/a?b=c#d", "https://example.org/a?b=c#d"),
        ("HTTP://example.org", "HTTP://example.org"),
        ("https://example.org/x) [y](https://evil.example", "https://example.org/x%29%5By%5D%28https://evil.example"),
        ("https://example.org/<b>\n\"'`|\\", "https://example.org/%3Cb%3E%22%27%60%7C%5C"),
        ("javascript:alert(1)", ""),
        ("data:text/html,<b>", ""),
        ("//evil.example", ""),
    ],
)
def test_the_target_of_a_link_is_the_address_of_a_page(address, expected):
    assert escape_link(address) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("red\n\tand blue\n", "red\n\tand blue\n"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\rb\x08\x7f\x00\x9b2J", r"a\rb\x08\x7f\x00\x9b2J"),
        ("\u202ered\u2066", r"\u202ered\u2066"),
        ("é 你好 👩\u200d🔬 नमस्ते", "é 你好 👩\u200d🔬 नमस्ते"),
    ],
)
def test_a_terminal_gets_no_control_characters(text, shown):
    assert show_controls(text) == shown


def test_texts_in_lists_are_flattened_and_other_values_kept():
    assert flatten_all([["a\n\x1bb"], 5, None]) == [["a b"], 5, None] and flatten_all("a\tb") == "a b"

"""Images go where a question's words say, and no word of it stands for another image."""

from types import SimpleNamespace

import pytest

from hawaii.evaluation.lmms.image_words import place_images


def image(name):
    return {"type": "image", "image": name}


def text(words):
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([text("what ?")], [text("what ?")]),
        ([image("a"), text("what ?")], [image("a"), text("what ?")]),
        ([image("a"), text("<image>\nwhat ?")], [image("a"), text("what ?")]),
        ([image("a"), text("what ?\n<image>")], [text("what ?"), image("a")]),
        (
            [image("a"), image("b"), text("is <image> like <image> ?")],
            [text("is "), image("a"), text(" like "), image("b"), text(" ?")],
        ),
        ([image("a"), image("b"), text("<image><image>what ?")], [image("a"), image("b"), text("what ?")]),
        (
            [text("<image> and"), image("a"), image("b"), text("or <image>")],
            [image("a"), text(" and"), text("or "), image("b")],
        ),
        ([text("what is <image> ?")], [text("what is  ?")]),
        ([text("what is <im<image>age> ?")], [text("what is  ?")]),
        ([text("what is <ima"), text("ge> ?")], [text("what is  ?")]),
        ([image("a"), text("<image> or <image> ?")], [image("a"), text(" or  ?")]),
        ([image("a"), image("b"), text("what is <image> ?")], [image("a"), image("b"), text("what is  ?")]),
        ([image("a"), text("<image>")], [image("a")]),
        ([], []),
    ],
)
def test_images_go_where_the_text_says_and_other_tokens_are_left_out(content, expected):
    assert place_images(content, SimpleNamespace(image_token="<image>")) == expected

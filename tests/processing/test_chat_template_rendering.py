"""A template's error is its result, so that a template may be tried."""

import pytest

from hawaii.processing.chat_templates import rendering
from hawaii.processing.chat_templates.rendering import render_or_describe


MESSAGES = [{"role": "system", "content": "short answers"}, {"role": "user", "content": "what is it?"}]


def test_a_conversation_is_rendered_with_the_special_tokens():
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }};{% endfor %}"
    assert render_or_describe(template, MESSAGES, bos_token="<s>") == "<s>short answers;what is it?;"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ raise_exception('no system messages') }}", "TemplateError: no system messages"),
        ("{{ messages[0].content + 1 }}", 'TypeError: can only concatenate str (not "int") to str'),
        ("{% for %}", "TemplateSyntaxError: "),
    ],
)
def test_an_error_of_the_template_is_described(template, error):
    assert render_or_describe(template, MESSAGES).startswith(error)


def test_a_lack_of_memory_is_no_error_of_the_template(monkeypatch):
    def exhaust(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(rendering, "render_jinja_template", exhaust)
    with pytest.raises(MemoryError):
        render_or_describe("{{ messages }}", MESSAGES)

"""A language model's own chat template takes a HAWAII's messages, and shows text as it did."""

import pytest
from jinja2 import Environment, TemplateError, nodes
from transformers.utils.chat_template_utils import render_jinja_template

from hawaii.processing.chat_templates import adapt_chat_template, load_chat_template
from hawaii.tests.tiny.language_models import CHATML, FAMILIES


TEXTS = [
    {"role": "user", "content": "<image>\nwhat is it ?"},
    {"role": "assistant", "content": "a circle"},
    {"role": "user", "content": "<image>\n<image>\nand these ?"},
]
LISTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a circle"}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "and these ?"}]},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TAKES_LISTS = (
    "{% for message in messages %}{% for item in message['content'] %}"
    "{{ '<image>' if item['type'] == 'image' else item['text'] }}"
    "{% endfor %}{% endfor %}"
)


def nodes_of(template, kind):
    return list(Environment().parse(template).find_all(kind))


def render(template, messages, **kwargs):
    return render_jinja_template([messages], chat_template=template, **SPECIAL, **kwargs)[0][0]


@pytest.fixture(params=FAMILIES)
def template(request):
    return FAMILIES[request.param].chat_template


@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_lists_are_shown_as_the_string_that_they_stand_for(template, add_generation_prompt):
    adapted = adapt_chat_template(template, **SPECIAL)
    expected = render(template, TEXTS, add_generation_prompt=add_generation_prompt)
    assert "<image>\nwhat is it ?" in expected
    for messages in (TEXTS, LISTS):
        assert render(adapted, messages, add_generation_prompt=add_generation_prompt) == expected


def test_an_adapted_template_is_not_adapted_again(template):
    adapted = adapt_chat_template(template, **SPECIAL)
    assert adapted != template and adapted.endswith(template)
    assert adapt_chat_template(adapted, **SPECIAL) == adapted


def test_engines_read_off_that_an_adapted_template_takes_lists():
    """vLLM and SGLang look for a loop over a message's content within a loop over the messages."""
    adapted = adapt_chat_template(CHATML)
    (outer,) = [loop for loop in nodes_of(adapted, nodes.For) if loop.target.name == "message"]
    (inner,) = outer.find_all(nodes.For)
    assert outer.iter.name == "messages"
    assert (inner.iter.node.name, inner.iter.arg.value) == ("message", "content")


@pytest.mark.parametrize(
    "template", [load_chat_template("vicuna_v1"), load_chat_template("plain"), TAKES_LISTS], ids=str.split
)
def test_a_template_that_takes_lists_stays_as_it_is(template):
    assert adapt_chat_template(template, **SPECIAL) == template


def test_a_template_that_writes_images_in_words_of_its_own_gets_them_as_text():
    template = TAKES_LISTS.replace("<image>", "<picture>").replace(
        "{% for item", "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item", 1
    )
    template = template.replace("{% endfor %}{% endfor %}", "{% endfor %}{% endif %}{% endfor %}")
    adapted = adapt_chat_template(template)
    assert render(adapted, LISTS) == "<image>\nwhat is it ?a circle<image>\n<image>\nand these ?"


def test_images_come_first_and_texts_are_joined():
    content = [{"type": "text", "text": "left "}, {"type": "image"}, {"type": "text", "text": "right"}]
    rendered = render(adapt_chat_template(CHATML), [{"role": "user", "content": content}])
    assert rendered.endswith("<|im_start|>user\n<image>\nleft right<|im_end|>\n")


def test_a_system_text_stays_and_may_come_in_parts():
    system = {
        "role": "system",
        "content": [{"type": "text", "text": "Be short. "}, {"type": "text", "text": "Be kind."}],
    }
    rendered = render(adapt_chat_template(CHATML), [system, *LISTS[:1]])
    assert rendered == (
        "<|im_start|>system\nBe short. Be kind.<|im_end|>\n<|im_start|>user\n<image>\nwhat is it ?<|im_end|>\n"
    )


@pytest.mark.parametrize("message", [{"role": "tool"}, {"role": "tool", "content": None, "name": "add"}], ids=str)
def test_a_message_without_content_reaches_the_template_as_it_is(message):
    template = CHATML.replace("turn['content']", "(turn['content'] or turn | string)")
    rendered = render(adapt_chat_template(template), [*TEXTS[:1], message])
    assert rendered == render(template, [*TEXTS[:1], message])
    assert str(message) in rendered


def test_what_else_a_message_holds_reaches_the_template():
    template = CHATML.replace("turn['content']", "turn['content'] + (turn.name or '')")
    message = {"role": "user", "name": "Ada", "content": LISTS[0]["content"]}
    assert "what is it ?Ada<|im_end|>" in render(adapt_chat_template(template), [message])


@pytest.mark.parametrize("beginning", ["", "\n", "  ", "\n\n  {%- if true %}{% endif %}", "{#- x -#}\n "])
def test_white_space_that_begins_a_template_is_shown_as_before(beginning):
    template = beginning + CHATML
    adapted = adapt_chat_template(template)
    assert adapted != template
    assert render(adapted, TEXTS) == render(template, TEXTS)


def test_what_is_neither_image_nor_text_is_refused():
    with pytest.raises(TemplateError, match="takes images and text, and not video"):
        render(adapt_chat_template(CHATML), [{"role": "user", "content": [{"type": "video"}]}])


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{ messages[0]['content'] | replace('<', '(') }}", r"\(image>"),
        ("{{ messages[0]['content'][:7] }}", "makes '<image>'"),
        ("{{ messages[0]['words'] }}", "makes ''"),
        ("{{ raise_exception('no users') }}", "no users"),
        ("{% for %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_loses_image_or_text_even_so_is_refused(template, shown):
    with pytest.raises(ValueError, match=f"does not show what a message holds: .*{shown}.*such as vicuna_v1"):
        adapt_chat_template(template)


def test_the_preamble_is_no_template_by_name():
    with pytest.raises(ValueError, match="Known by name: plain, vicuna_v1;"):
        load_chat_template("chatml")

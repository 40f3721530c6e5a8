"""An adapted chat template of a language model renders lists of images and text, and strings as before."""

import pytest
from jinja2 import TemplateError, nodes
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from hawaii.example_data.word_tokenizer import CHAT_TEMPLATE
from hawaii.files.user_error import UserError
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


def find_nodes(template, node_class):
    return list(_compile_jinja_template(template).environment.parse(template).find_all(node_class))


def render(template, messages, **kwargs):
    return render_jinja_template([messages], chat_template=template, **SPECIAL, **kwargs)[0][0]


@pytest.fixture(params=FAMILIES)
def template(request):
    return FAMILIES[request.param].chat_template


@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_lists_are_rendered_as_the_equivalent_strings(template, add_generation_prompt):
    adapted = adapt_chat_template(template, **SPECIAL)
    expected = render(template, TEXTS, add_generation_prompt=add_generation_prompt)
    assert "<image>\nwhat is it ?" in expected
    for messages in (TEXTS, LISTS):
        assert render(adapted, messages, add_generation_prompt=add_generation_prompt) == expected


def test_an_adapted_template_is_not_adapted_again(template):
    adapted = adapt_chat_template(template, **SPECIAL)
    assert adapted != template and adapted.endswith(template)
    assert adapt_chat_template(adapted, **SPECIAL) == adapted


def test_engines_recognise_that_an_adapted_template_takes_lists():
    """vLLM and SGLang look for a loop over a message's content within a loop over the messages."""
    adapted = adapt_chat_template(CHATML)
    (outer,) = [loop for loop in find_nodes(adapted, nodes.For) if loop.target.name == "message"]
    (inner,) = outer.find_all(nodes.For)
    assert outer.iter.name == "messages"
    assert (inner.iter.node.name, inner.iter.arg.value) == ("message", "content")


@pytest.mark.parametrize("template", [load_chat_template("vicuna_v1"), load_chat_template("plain"), CHAT_TEMPLATE])
def test_engines_recognise_that_a_template_of_the_package_takes_lists(template):
    """vLLM takes any loop over a variable of this name for one over a message's content."""
    loops = find_nodes(template, nodes.For)
    assert "content" in [loop.iter.name for loop in loops if isinstance(loop.iter, nodes.Name)]


@pytest.mark.parametrize(
    "template", [load_chat_template("vicuna_v1"), load_chat_template("plain"), TAKES_LISTS], ids=str.split
)
def test_a_template_that_takes_lists_is_unchanged(template):
    assert adapt_chat_template(template, **SPECIAL) == template


def test_a_template_with_another_image_token_gets_images_as_text():
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


def test_a_system_text_is_kept_and_may_have_several_parts():
    system = {
        "role": "system",
        "content": [{"type": "text", "text": "Be short. "}, {"type": "text", "text": "Be kind."}],
    }
    rendered = render(adapt_chat_template(CHATML), [system, *LISTS[:1]])
    assert rendered == (
        "<|im_start|>system\nBe short. Be kind.<|im_end|>\n<|im_start|>user\n<image>\nwhat is it ?<|im_end|>\n"
    )


SYSTEM = {"role": "system", "content": "Be short."}
# Those of Gemma's and Mistral's form have no place for a system's text, and say so.
HAVE_SYSTEM = [name for name in FAMILIES if name not in ("gemma3", "mistral")]


@pytest.mark.parametrize(
    "template",
    [
        load_chat_template("vicuna_v1"),
        CHAT_TEMPLATE,
        *(adapt_chat_template(FAMILIES[name].chat_template, **SPECIAL) for name in HAVE_SYSTEM),
    ],
    ids=["vicuna_v1", "demo", *HAVE_SYSTEM],
)
def test_a_systems_text_is_in_front_of_all_turns(template):
    with_list = {**SYSTEM, "content": [{"type": "text", "text": SYSTEM["content"]}]}
    for turns in (LISTS, TEXTS, LISTS[:1], TEXTS[:1]):
        rendered = render(template, [SYSTEM, *turns], add_generation_prompt=True)
        assert render(template, [with_list, *turns], add_generation_prompt=True) == rendered
        assert rendered.count("Be short.") == 1
        assert rendered.index("Be short.") < rendered.index("what is it ?")
        # All that follows the first question is as without the system's text.
        without = render(template, turns, add_generation_prompt=True)
        assert rendered.partition("what is it ?")[2] == without.partition("what is it ?")[2]


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_a_template_without_a_place_for_a_systems_text_refuses_it(name):
    with pytest.raises(TemplateError, match="roles must alternate"):
        render(adapt_chat_template(FAMILIES[name].chat_template, **SPECIAL), [SYSTEM, *LISTS])


def test_stage_1_has_captions_alone():
    assert render(load_chat_template("plain"), [SYSTEM, *LISTS]) == "<image>a circle\n<image><image>"


@pytest.mark.parametrize("message", [{"role": "tool"}, {"role": "tool", "content": None, "name": "add"}], ids=str)
def test_a_message_without_content_reaches_the_template_unchanged(message):
    template = CHATML.replace("turn['content']", "(turn['content'] or turn | string)")
    rendered = render(adapt_chat_template(template), [*TEXTS[:1], message])
    assert rendered == render(template, [*TEXTS[:1], message])
    assert str(message) in rendered


def test_other_keys_of_a_message_reach_the_template():
    template = CHATML.replace("turn['content']", "turn['content'] + (turn.name or '')")
    message = {"role": "user", "name": "Ada", "content": LISTS[0]["content"]}
    assert "what is it ?Ada<|im_end|>" in render(adapt_chat_template(template), [message])


@pytest.mark.parametrize("beginning", ["", "\n", "  ", "\n\n  {%- if true %}{% endif %}", "{#- x -#}\n "])
def test_leading_white_space_of_a_template_is_rendered_as_before(beginning):
    template = beginning + CHATML
    adapted = adapt_chat_template(template)
    assert adapted != template
    assert render(adapted, TEXTS) == render(template, TEXTS)


def test_content_other_than_images_and_text_is_refused():
    with pytest.raises(TemplateError, match="takes images and text, and not video"):
        render(adapt_chat_template(CHATML), [{"role": "user", "content": [{"type": "video"}]}])


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{ messages[0]['content'] | replace('<', '(') }}", r"\(image>"),
        ("{{ messages[0]['content'][:7] }}", "as '<image>'"),
        ("{{ messages[0]['words'] }}", "as ''"),
        ("{{ raise_exception('no users') }}", "no users"),
        ("{% for %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_still_loses_image_or_text_is_refused(template, shown):
    with pytest.raises(UserError, match=f"loses the content of a message: .*{shown}.*such as vicuna_v1"):
        adapt_chat_template(template)


def test_the_preamble_is_not_offered_as_a_template():
    with pytest.raises(UserError, match="Known by name: plain, vicuna_v1;"):
        load_chat_template("chatml")


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "chat.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"The chat template .*chat\.jinja is not text"):
        load_chat_template(str(tmp_path / "chat.jinja"))

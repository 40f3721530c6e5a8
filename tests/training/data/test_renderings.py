"""Language models' chat templates without generation markers: the labels are the text that follows the prompt."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import AddedToken, CLIPImageProcessor, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from hawaii import HawaiiProcessor
from hawaii.files.user_error import UserError
from hawaii.processing.chat_templates import adapt_chat_template, load_chat_template
from hawaii.tests.tiny.language_models import CHATML, FAMILIES, PROMPT, make_tokenizer
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_messages
from hawaii.training.data import renderings
from hawaii.training.data.conversations import chat_messages, tokenize_conversation
from hawaii.training.data.renderings import MARK, render_conversation
from hawaii.training.sources.record import Message


TURNS = ["<image>\nwhat is it ?", "a circle", "and its color ?", "red\n\nor  blue"]


def make_family_processor(family, chat_template=None):
    size = {"height": 16, "width": 16}
    tokenizer = make_tokenizer(family)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    template = family.chat_template if chat_template is None else chat_template
    return HawaiiProcessor(
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        chat_template=adapt_chat_template(template, **tokenizer.special_tokens_map),
    )


def qwen(chat_template=CHATML):
    return make_family_processor(FAMILIES["qwen2"], chat_template)


def tokenize(processor, *texts):
    return tokenize_conversation(make_messages(*texts), processor)


def chosen(processor, conversation, is_chosen):
    """Returns the text of each sequence of consecutive chosen tokens."""
    sequences, was_chosen = [], False
    for token, is_chosen_now in zip(conversation.input_ids, is_chosen, strict=True):
        if is_chosen_now:
            sequences = sequences if was_chosen else [*sequences, []]
            sequences[-1].append(token)
        was_chosen = is_chosen_now
    return [processor.tokenizer.decode(sequence) for sequence in sequences]


def answers(processor, *texts):
    conversation = tokenize(processor, *texts)
    return chosen(processor, conversation, conversation.is_answer)


LEARNED = {
    "llama3": ["a circle<|eot_id|>", "red\n\nor  blue<|eot_id|>"],
    "smollm2": ["a circle<|im_end|>", "red\n\nor  blue<|im_end|>"],
    "qwen2": ["a circle<|im_end|>", "red\n\nor  blue<|im_end|>"],
    "qwen3": ["a circle<|im_end|>", "<think>\n\n</think>\n\nred\n\nor  blue<|im_end|>"],
    "smollm3": [f"<|im_start|>assistant\n{text}<|im_end|>\n" for text in TURNS[1::2]],
    "gemma3": ["a circle<end_of_turn>", "red\n\nor  blue<end_of_turn>"],
    "phi": ["a circle<|im_end|>", "red\n\nor  blue<|im_end|>"],
    "phi3": ["a circle<|end|>", "red\n\nor  blue<|end|>"],
    "mistral": [" a circle</s>", " red\n\nor  blue</s>"],
    "olmo2": ["a circle<|endoftext|>", "red\n\nor  blue<|endoftext|>"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_start_after_the_prompt_and_stop_with_the_token_that_ends_the_answer(name):
    processor = make_family_processor(FAMILIES[name])
    conversation = tokenize(processor, *TURNS)
    assert chosen(processor, conversation, conversation.is_answer) == LEARNED[name]
    questions = chosen(processor, conversation, conversation.is_prompt)
    assert [question.strip() for question in questions] == ["what is it ?", "and its color ?"]
    assert processor.tokenizer.convert_ids_to_tokens(conversation.end_ids) == [FAMILIES[name].end]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "smollm3"])
def test_the_tokens_before_an_answer_are_the_prompt_of_inference(name):
    processor = make_family_processor(FAMILIES[name])
    conversation = tokenize(processor, *TURNS)
    starts = [
        index
        for index, is_answer in enumerate(conversation.is_answer)
        if is_answer and not conversation.is_answer[index - 1]
    ]
    messages = chat_messages(make_messages(*TURNS))
    messages[0]["content"][0] = {"type": "image", "image": "unused"}
    for turn, start in zip((1, 3), starts, strict=True):
        prompt = processor.apply_chat_template(messages[:turn], add_generation_prompt=True)
        prompt = prompt.replace("<image>", "<image>" * processor.num_image_tokens)
        has_bos = processor.tokenizer.bos_token is not None
        assert (
            processor.tokenizer(prompt, add_special_tokens=not has_bos)["input_ids"] == conversation.input_ids[:start]
        )


def test_a_special_token_may_include_the_white_space_after_it():
    """Like Phi 3's, whose template puts a line break before an answer."""
    processor = make_family_processor(FAMILIES["phi3"])
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["rstrip"] = token["content"] != "<image>"
    names = {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<image>"]}
    backend = Tokenizer.from_str(json.dumps(backend))
    processor.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    conversation = tokenize(processor, *TURNS)
    assert chosen(processor, conversation, conversation.is_answer) == LEARNED["phi3"]
    tokens = processor.tokenizer.convert_ids_to_tokens(conversation.input_ids)
    assert tokens[tokens.index("<|assistant|>") + 1] == "a"


def test_thoughts_are_labelled_if_the_template_renders_them():
    processor = make_family_processor(FAMILIES["qwen3"])
    texts = ["what ?", "<think>\nround\n</think>\n\na circle", "color ?", "<think>\nwarm\n</think>\n\nred"]
    assert answers(processor, *texts) == ["a circle<|im_end|>", "<think>\nwarm\n</think>\n\nred<|im_end|>"]


@pytest.mark.parametrize(
    "answer", ["a <|im_end|> b", "<|im_start|>assistant\n", "<|im_end|>", "ends in <|endoftext|>"]
)
def test_special_tokens_in_the_text_of_an_answer_do_not_end_it(answer):
    assert answers(qwen(), "say it", answer, "again", answer) == [f"{answer.strip()}<|im_end|>"] * 2


def test_an_answer_that_repeats_the_prompt_does_not_label_the_prompt():
    assert answers(qwen(), "is it red ?", "is it red ?") == ["is it red ?<|im_end|>"]


def test_the_label_of_an_empty_answer_is_its_end():
    assert answers(qwen(), "what ?", "", "color ?", "red") == ["<|im_end|>", "red<|im_end|>"]


def test_white_space_before_the_end_of_an_answer_is_labelled_even_if_it_is_an_added_token():
    processor = qwen(CHATML.replace("turn['content'] +", "turn['content'] + '  ' +"))
    processor.tokenizer.add_tokens([AddedToken("  ", normalized=False)])
    assert answers(processor, "what ?", "red") == ["red  <|im_end|>"]


def test_all_tokens_that_end_answers_are_collected():
    last = "{{ '<|endoftext|>' if loop.last and turn['role'] == 'assistant' else '<|im_end|>' }}"
    processor = qwen(CHATML.replace(" + '<|im_end|>' + '\n' }}", " }}" + last))
    conversation = tokenize(processor, *TURNS)
    assert chosen(processor, conversation, conversation.is_answer) == [
        "a circle<|im_end|>",
        "red\n\nor  blue<|endoftext|>",
    ]
    assert set(processor.tokenizer.convert_ids_to_tokens(conversation.end_ids)) == {"<|im_end|>", "<|endoftext|>"}


@pytest.mark.parametrize(("chat_template", "ends"), [("vicuna_v1", ["</s>"]), ("plain", [])])
def test_the_end_tokens_of_the_built_in_templates(chat_template, ends):
    processor = make_processor(chat_template=chat_template)
    conversation = tokenize(processor, "what ?", "red")
    assert processor.tokenizer.convert_ids_to_tokens(conversation.end_ids) == ends


def test_each_turn_is_rendered_once_and_the_text_tokenized_once(monkeypatch):
    processor, rendered, tokenized = qwen(), [], []
    render, tokenizer = renderings.render_jinja_template, type(processor.tokenizer)
    call = tokenizer.__call__
    monkeypatch.setattr(
        renderings,
        "render_jinja_template",
        lambda conversations, **kwargs: rendered.append(len(conversations[0])) or render(conversations, **kwargs),
    )
    monkeypatch.setattr(
        tokenizer, "__call__", lambda self, *args, **kw: tokenized.append(1) or call(self, *args, **kw)
    )
    tokenize(processor, *TURNS)
    assert (rendered, tokenized) == ([4, 1, 3], [1])


def render_every_prompt(messages, processor):
    """The starts of the answers from one rendering of each prompt, which takes quadratic time."""
    marked = [renderings._mark(message) for message in messages]
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    prompts = [renderings._render(marked[:turn], processor, add_generation_prompt=True)[0] for turn in turns]
    return [len(MARK.sub("", prompt)) for prompt in prompts]


# The name of the assistant changes within the conversation, with the number of the turn or with the text before it.
RENAMED = "{{ '<|im_start|>' + ('bot' if number == 41 else 'assistant') + '\n' }}"
RENAMED = (
    "{% for turn in messages %}{% set number = loop.index0 %}{% if turn.role == 'user' %}"
    "{{ '<|im_start|>user\n' + turn.content + '<|im_end|>\n' }}{% else %}"
    + RENAMED
    + "{{ turn.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{% set number = messages | length %}"
    + RENAMED
    + "{% endif %}"
)
LONG_TEMPLATES = {
    **{name: family.chat_template for name, family in FAMILIES.items()},
    "renamed": RENAMED,
    "renamed_after": RENAMED.replace("number == 41", "'14' in messages[number - 1].content"),
}


# The others are rendered once, by their markers.
LINEAR = [name for name in LONG_TEMPLATES if not renderings.GENERATION.search(LONG_TEMPLATES[name])]


@pytest.mark.parametrize("name", LINEAR)
def test_answers_of_a_long_conversation_begin_where_every_prompt_ends(name):
    processor = make_family_processor(FAMILIES.get(name, FAMILIES["qwen2"]), LONG_TEMPLATES[name])
    texts = []
    for number in range(48):
        image = "<image>\n" if number % 5 == 0 else ""
        texts += [f"{image}what {number} ?" if number % 7 else "<image>", "" if number == 30 else f" red {number}\n"]
    messages = chat_messages(make_messages(*texts))
    answers = render_conversation(messages, processor).answers
    assert [start for start, _ in answers] == render_every_prompt(messages, processor)


@pytest.mark.parametrize("name", LINEAR)
def test_a_conversation_takes_linear_time(monkeypatch, name):
    """Few prompts are rendered for a conversation with every kind of question and some exceptions."""
    processor, rendered = make_family_processor(FAMILIES.get(name, FAMILIES["qwen2"]), LONG_TEMPLATES[name]), []
    render = renderings.render_jinja_template
    monkeypatch.setattr(
        renderings,
        "render_jinja_template",
        lambda conversations, **kwargs: rendered.append(len(conversations[0])) or render(conversations, **kwargs),
    )
    numbers = {}
    for num_questions in (100, 1000):
        rendered.clear()
        texts = []
        for number in range(num_questions):
            image = "<image>\n" if number % 5 == 0 else ""
            texts += [f"{image}what {number} ?" if number % 7 else "<image>", f"red {number}" if number % 50 else ""]
        conversation = tokenize(processor, *texts)
        starts = [end for end, begin in zip(conversation.is_answer, conversation.is_answer[1:]) if begin and not end]
        assert len(starts) == num_questions
        numbers[num_questions] = sum(rendered)
    assert numbers[1000] < 12 * numbers[100]


class Calendar:
    """Replaces `datetime`: returns the given days in turn, and then always the last one."""

    def __init__(self, *days):
        self.days = list(days)

    def now(self):
        return self

    def strftime(self, form):
        return self.days.pop(0) if len(self.days) > 1 else self.days[0]


def test_a_date_may_change_between_two_renderings(monkeypatch):
    processor = make_family_processor(FAMILIES["llama3"])
    monkeypatch.setattr(chat_template_utils, "datetime", Calendar("Monday", "Tuesday"))
    conversation = tokenize(processor, *TURNS)
    assert "Today: Tuesday" in processor.tokenizer.decode(conversation.input_ids)
    assert chosen(processor, conversation, conversation.is_answer) == LEARNED["llama3"]


REPEATED_ANSWER = "{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + turn['content'] + '<|im_end|>' }}"
END_AFTER_LAST_TURN = "{{ turn['role'] + ': ' + turn['content'] + ('<|im_end|>' if loop.last else '\n') }}"
NO_ANSWERS = "{{ turn['content'] if turn['role'] == 'user' else '<|im_end|>' }}"


def loop(turn, prompt=PROMPT):
    return "{% for turn in messages %}" + turn + "{% endfor %}" + prompt


@pytest.mark.parametrize(
    ("template", "texts", "problem"),
    [
        (
            CHATML.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>bot\n' }}"),
            TURNS,
            "differently without the answer",
        ),
        ("{{ messages | length }}" + CHATML, TURNS, "differently without the answer.* such as vicuna_v1"),
        (loop("{{ turn['role'] + ': ' + turn['content'] + '\n' }}", "{{ '' }}"), TURNS[:2], "no special token"),
        (loop(END_AFTER_LAST_TURN, "{{ '' }}"), TURNS, "differently without the answer"),
        (loop(END_AFTER_LAST_TURN.replace("loop.last", "loop.index0 == 3"), ""), TURNS, "no special token"),
        (loop(NO_ANSWERS, ""), TURNS, "shows the ends of 0 answers but there are 2"),
        (loop(REPEATED_ANSWER), TURNS, "shows the ends of 4 answers but there are 2"),
    ],
)
def test_a_template_whose_answers_cannot_be_located_is_an_error(template, texts, problem):
    processor = qwen()
    processor.chat_template = adapt_chat_template(CHATML)[: -len(CHATML)] + template
    with pytest.raises(UserError, match=problem):
        tokenize(processor, *texts)


@pytest.mark.parametrize("question", ["and its color ?", "<image>"])
def test_a_special_token_after_the_next_question_does_not_end_the_answer(question):
    turn = "{{ turn['content'] + ('<|im_end|>' if turn['role'] == 'user' or loop.last else '\n') }}"
    processor = qwen(loop(turn, ""))
    with pytest.raises(UserError, match="puts no special token of the tokenizer after an answer"):
        tokenize(processor, "what ?", "a circle", question, "red")


def test_a_conversation_that_the_template_rejects_is_an_error():
    messages = [Message(role, "a") for role in ("user", "user", "assistant")]
    with pytest.raises(UserError, match=r"rejects its conversation \(the roles must alternate\)"):
        tokenize_conversation(messages, make_family_processor(FAMILIES["gemma3"]))


@pytest.mark.parametrize("failing", ["{{ 1 // 0 }}", "{{ '{name}'.format() }}", "{{ messages + 1 }}"])
def test_a_template_that_raises_is_an_error(failing):
    processor = qwen()
    processor.chat_template = failing
    with pytest.raises(UserError, match=r"the chat template rejects its conversation \(.+\)"):
        tokenize(processor, *TURNS)


def test_vicunas_template_ends_answers_with_the_end_token_of_any_tokenizer():
    processor = qwen(load_chat_template("vicuna_v1"))
    assert answers(processor, "what ?", "red") == [" red<|endoftext|>"]

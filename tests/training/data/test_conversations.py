"""Every token of a conversation is part of an answer, of an instruction, or of neither."""

import json

import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from hawaii import HawaiiProcessor
from hawaii.files.user_error import UserError
from hawaii.processing.chat_templates import load_chat_template
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_messages
from hawaii.training.data.conversations import chat_messages, tokenize_conversation


SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
TEXTS = [
    "A chat between a curious user",
    "USER: what color is this ? ASSISTANT: it is red",
    "the shape is a circle",
] * 3
ODD_TEXTS = [
    "what is this?",
    "Čo je to? 你好 🙂 नमस्ते",
    "{{ messages }} {% if x %} {# no #} {",
    "USER: who asks? ASSISTANT: me",
    "A chat between a curious user and an artificial intelligence assistant.",
    "line one\nline two\n\n  three   spaces",
    "<img> </image> [INST] <|im_end|>",
    "a",
]


def make_byte_level() -> Tokenizer:
    """Like GPT-2's: bytes; a space is part of the next word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def make_metaspace() -> Tokenizer:
    """Like Llama's: a mark for each space, bytes for unknown characters, and a token at the start of the sequence."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def make_trimmed() -> Tokenizer:
    """Like GPT-NeoX's and OLMo's: bytes; the tokens' offsets leave out spaces."""
    tokenizer = make_byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def make_prepending() -> Tokenizer:
    """Like Vicuna's: the text, and each text after a special token, is prefixed with a mark."""
    tokenizer = make_metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.normalizer = normalizers.Prepend("▁")
    return tokenizer


TOKENIZERS = {
    "byte_level": make_byte_level,
    "trimmed": make_trimmed,
    "metaspace": make_metaspace,
    "prepending": make_prepending,
}


def make_text_processor(tokenizer: Tokenizer, chat_template: str) -> HawaiiProcessor:
    size = {"height": 16, "width": 16}
    return HawaiiProcessor(
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=8,
        chat_template=load_chat_template(chat_template),
    )


@pytest.fixture(scope="module", params=TOKENIZERS)
def processor(request):
    """Vicuna's template with each tokenizer that preserves all characters."""
    return make_text_processor(TOKENIZERS[request.param](), "vicuna_v1")


@pytest.fixture
def plain(processor):
    return make_text_processor(processor.tokenizer.backend_tokenizer, "plain")


def answer_ids(conversation):
    """Returns the tokens of each answer."""
    answers, was_answer = [], False
    for token, is_answer in zip(conversation.input_ids, conversation.is_answer):
        if is_answer and not was_answer:
            answers.append([])
        if is_answer:
            answers[-1].append(token)
        was_answer = is_answer
    return answers


def decode(processor, tokens):
    return processor.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def prompt_ids(conversation):
    return [
        token for token, is_prompt in zip(conversation.input_ids, conversation.is_prompt, strict=True) if is_prompt
    ]


def tokenize(processor, *texts):
    return tokenize_conversation(make_messages(*texts), processor)


@pytest.mark.parametrize("answer", ODD_TEXTS)
@pytest.mark.parametrize("question", ODD_TEXTS[:4])
def test_labels_are_the_assistants_text_and_its_end(processor, question, answer):
    conversation = tokenize(processor, question, answer)
    assert [decode(processor, ids).strip(" ") for ids in answer_ids(conversation)] == [f"{answer}</s>"]


@pytest.mark.parametrize("question", ODD_TEXTS)
def test_instruction_tokens_are_the_users_text(processor, question):
    conversation = tokenize(processor, f"<image>\n{question}", "it is red")
    assert decode(processor, prompt_ids(conversation)).strip(" ") == question


def test_an_answer_that_repeats_the_question_does_not_label_the_question(processor):
    conversation = tokenize(processor, "the shape is a circle", "the shape is a circle")
    assert [decode(processor, ids).strip(" ") for ids in answer_ids(conversation)] == ["the shape is a circle</s>"]
    assert decode(processor, prompt_ids(conversation)).strip(" ") == "the shape is a circle"
    first = conversation.is_answer.index(True)
    before = decode(processor, conversation.input_ids[:first])
    assert before.endswith("USER: the shape is a circle ASSISTANT:")


def test_every_turn_of_a_conversation_is_labelled(processor):
    conversation = tokenize(processor, "<image>\nwhat is it ?", "a circle", "and its color ?", "red")
    assert [decode(processor, ids).strip(" ") for ids in answer_ids(conversation)] == ["a circle</s>", "red</s>"]
    assert "".join(decode(processor, prompt_ids(conversation)).split()) == "whatisit?anditscolor?"


def test_there_is_an_image_token_per_patch_which_is_neither_answer_nor_instruction(processor):
    conversation = tokenize(processor, "<image>\nwhat is it ?", "a circle")
    image = processor.image_token_id
    assert conversation.input_ids.count(image) == processor.num_image_tokens == 4
    assert not any(flag for token, flag in zip(conversation.input_ids, conversation.is_answer) if token == image)
    assert image not in prompt_ids(conversation)


def test_plain_labels_the_caption_and_a_newline_and_has_no_instruction(plain):
    conversation = tokenize(plain, "<image>\nGive a brief description.", "a red circle")
    assert [decode(plain, ids).strip(" ") for ids in answer_ids(conversation)] == ["a red circle\n"]
    assert prompt_ids(conversation) == []
    image = conversation.input_ids.index(plain.image_token_id)
    assert conversation.input_ids[image : image + 4] == [plain.image_token_id] * 4
    assert not any(conversation.is_answer[: image + 4])
    assert all(conversation.is_answer[image + 4 :])


@pytest.mark.parametrize(
    "texts", [["<image>\nwhat is it ?", "a circle"], [ODD_TEXTS[1], ODD_TEXTS[2], *ODD_TEXTS[3:5]]]
)
@pytest.mark.parametrize("chat_template", ["plain", "vicuna_v1"])
def test_tokens_equal_the_processors(processor, chat_template, texts):
    processor = make_text_processor(processor.tokenizer.backend_tokenizer, chat_template)
    has_image = "<image>" in texts[0]
    conversation = tokenize(processor, *texts)
    messages = chat_messages(make_messages(*texts))
    if has_image:
        messages[0]["content"][0] = {"type": "image", "image": Image.new("RGB", (16, 16))}
    expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert expected["input_ids"] == [conversation.input_ids]


def test_tokens_of_several_images_equal_the_processors(processor):
    conversation = tokenize(processor, "<image><image>\nwhich ?", "one", "<image>\nnow ?", "two")
    messages = chat_messages(make_messages("<image><image>\nwhich ?", "one", "<image>\nnow ?", "two"))
    for message in messages:
        for item in message["content"]:
            if item["type"] == "image":
                item["image"] = Image.new("RGB", (16, 16))
    expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert expected["input_ids"] == [conversation.input_ids]


def test_the_token_at_the_start_of_a_sequence_is_not_repeated(processor):
    has_bos = processor.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id
    template = "{{ bos_token }}" + processor.chat_template
    with_bos = make_text_processor(processor.tokenizer.backend_tokenizer, "vicuna_v1")
    with_bos.chat_template = template
    tokens = tokenize(with_bos, "what ?", "red").input_ids
    assert tokens.count(with_bos.tokenizer.bos_token_id) == 1
    assert tokenize(processor, "what ?", "red").input_ids.count(processor.tokenizer.bos_token_id) == int(has_bos)


def test_a_word_level_tokenizer_by_hand():
    processor = make_processor()
    conversation = tokenize(processor, "what color ?", "red")
    words = processor.tokenizer.convert_ids_to_tokens(conversation.input_ids)
    assert words[-7:] == ["what", "color", "?", "ASSISTANT", ":", "red", "</s>"]
    assert conversation.is_answer[-7:] == [False] * 5 + [True] * 2
    assert not any(conversation.is_answer[:-7])
    assert processor.tokenizer.convert_ids_to_tokens(prompt_ids(conversation)) == ["what", "color", "?"]


def test_private_use_characters_in_a_text_are_not_mistaken_for_marks(processor):
    conversation = tokenize(processor, "wh\ue000at \ue001?", "re\ue001d")
    assert decode(processor, prompt_ids(conversation)).strip(" ") == "what ?"
    assert [decode(processor, ids).strip(" ") for ids in answer_ids(conversation)] == ["red</s>"]


def test_a_processor_without_a_template_is_an_error():
    processor = make_processor()
    processor.chat_template = None
    with pytest.raises(UserError, match="has no chat template; give it one, such as vicuna_v1"):
        tokenize(processor, "what ?", "red")


GENERATION = "{% generation %}{{ message['content'] }}{% endgeneration %}"


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in message['content'] if i['type'] == 'text' %}{{ i['text'][:2] }}{% endfor %}",
        "{{ message['content'] }}",
    ],
    ids=["truncated", "content_as_a_string"],
)
def test_a_template_that_loses_text_or_images_of_the_user_is_an_error(text):
    processor = make_processor()
    condition = "{% if message['role'] == 'user' %}" + text + "{% else %}" + GENERATION + "{% endif %}"
    processor.chat_template = "{% for message in messages %}" + condition + "{% endfor %}"
    with pytest.raises(UserError, match="truncates the user's text or shows another number of images; it must accept"):
        tokenize(processor, "<image>\nwhat ?", "red")


def test_a_tokenizer_that_splits_the_image_token_is_an_error():
    processor = make_processor()
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = []
    backend = Tokenizer.from_str(json.dumps(backend))
    processor.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(UserError, match="makes 0 image tokens of 1 images; make <image> one of its special tokens"):
        tokenize(processor, "<image>\nwhat color ?", "red")


def test_a_template_may_strip_spaces():
    processor = make_processor()
    processor.chat_template = processor.chat_template.replace("else item['text']", "else item['text'] | trim")
    assert tokenize(processor, "what ?", "red") == tokenize(make_processor(), "what ?", "red")

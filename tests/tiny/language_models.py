"""Tiny language models of common families, with matching tokenizers and chat templates."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


TEXTS = ["what color is the shape ? it is red", "is there a circle in the image ? yes , there is"] * 3

PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# Like Qwen 2.5's and SmolLM 2's: a system turn even if the messages have none.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for turn in messages %}"
    "{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}" + PROMPT
)
# Like Qwen 3's: the last answer begins with a thought, possibly empty; earlier answers lose theirs.
THINKING = (
    "{% set last = namespace(user=-1) %}"
    "{% for turn in messages %}{% if turn.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for turn in messages %}"
    "{{ '<|im_start|>' + turn.role + '\n' }}"
    "{% set answer = turn.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if turn.role == 'assistant' and loop.index0 > last.user %}"
    "{% set thought = turn.content.split('</think>')[0] if '</think>' in turn.content else '' %}"
    "{{ '<think>\n' + thought.split('<think>')[-1].strip('\n') + '\n</think>\n\n' }}"
    "{% endif %}"
    "{{ answer + '<|im_end|>\n' }}"
    "{% endfor %}" + PROMPT
)
# Like Llama 3's: a token at the start, the date, trimmed turns.
HEADERS = (
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + strftime_now('%d %b %Y') }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{{ '\n\n' + messages[0]['content'] | trim }}{% set messages = messages[1:] %}"
    "{% endif %}{{ '<|eot_id|>' }}"
    "{% for turn in messages %}"
    "{{ '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' + turn['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ALTERNATE = (
    "{% for turn in messages %}{% if (loop.index0 % 2 == 0) != (turn['role'] == 'user') %}"
    "{{ raise_exception('the roles must alternate') }}{% endif %}{% endfor %}"
)
# Like Gemma's: the assistant is called model, no system turn, trimmed turns.
MODEL_ROLE = (
    "{{ bos_token }}" + ALTERNATE + "{% for turn in messages %}"
    "{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ turn['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Like Mistral's: no generation prompt after the end of the question.
INSTRUCTION = (
    "{{ bos_token }}" + ALTERNATE + "{% for turn in messages %}{% if turn['role'] == 'user' %}"
    "{{ '[INST] ' + turn['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Like OLMo 2's: plain words for the roles, an end token after answers only.
PLAIN_ROLES = (
    "{{ bos_token }}{% for turn in messages %}{{ '<|' + turn['role'] + '|>\n' + turn['content'] }}"
    "{% if turn['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)
# Like Phi 3's: an end token after each turn and another after the last.
TWO_ENDS = (
    "{% for turn in messages %}{{ '<|' + turn['role'] + '|>\n' + turn['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Like SmolLM 3's: it marks the assistant's answers.
MARKED = (
    "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}"
    "{% for turn in messages %}{% if turn['role'] == 'assistant' %}"
    "{% generation %}{{ '<|im_start|>assistant\n' + turn['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}" + PROMPT
)


@dataclass
class Family:
    """
    Args:
        model_type (`str`):
            Model type in transformers.
        chat_template (`str`):
            Chat template of the family.
        special_tokens (`list[str]`):
            All special tokens of the tokenizer.
        end (`str`):
            Token that the template adds after an answer.
        eos_token (`str`):
            End token of the tokenizer and the language model.
        bos_token (`str`, *optional*):
            Token that the tokenizer adds before every text.
        pad_token (`str`, *optional*):
            Padding token.
        can_be_tied (`tuple[bool, ...]`, *optional*, defaults to both):
            Whether the head may share the embeddings' weights.
        fields (`dict`, *optional*):
            Configuration fields whose defaults are too large or not the family's.
    """

    model_type: str
    chat_template: str
    special_tokens: list[str]
    end: str
    eos_token: str
    bos_token: str | None = None
    pad_token: str | None = None
    can_be_tied: tuple[bool, ...] = (False, True)
    fields: dict = field(default_factory=dict)


CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FAMILIES = {
    "llama3": Family(
        "llama",
        HEADERS,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        end="<|eot_id|>",
        eos_token="<|end_of_text|>",
        bos_token="<|begin_of_text|>",
    ),
    "smollm2": Family("llama", CHATML, CHATML_TOKENS, end="<|im_end|>", eos_token="<|im_end|>", can_be_tied=(True,)),
    "qwen2": Family("qwen2", CHATML, CHATML_TOKENS, "<|im_end|>", eos_token="<|endoftext|>"),
    "qwen3": Family("qwen3", THINKING, CHATML_TOKENS, "<|im_end|>", eos_token="<|endoftext|>", fields={"head_dim": 8}),
    "smollm3": Family("smollm3", MARKED, CHATML_TOKENS, "<|im_end|>", "<|im_end|>", fields={"no_rope_layers": [1, 0]}),
    "gemma3": Family(
        "gemma3_text",
        MODEL_ROLE,
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        end="<end_of_turn>",
        eos_token="<eos>",
        bos_token="<bos>",
        pad_token="<pad>",
        can_be_tied=(True,),
        fields={"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi": Family("phi", CHATML, CHATML_TOKENS, "<|im_end|>", "<|endoftext|>", can_be_tied=(False,)),
    "phi3": Family(
        "phi3", TWO_ENDS, ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"], "<|end|>", "<|endoftext|>"
    ),
    "mistral": Family(
        "mistral",
        INSTRUCTION,
        ["<s>", "</s>", "[INST]", "[/INST]"],
        end="</s>",
        eos_token="</s>",
        bos_token="<s>",
        fields={"sliding_window": 8},
    ),
    "olmo2": Family("olmo2", PLAIN_ROLES, ["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
}


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Makes a tokenizer over bytes, so that no character is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=family.special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {name: getattr(family, name) for name in ("bos_token", "eos_token", "pad_token")}
    if family.bos_token is not None:
        bos = (family.bos_token, tokenizer.token_to_id(family.bos_token))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=family.chat_template,
        additional_special_tokens=family.special_tokens,
        **{name: token for name, token in names.items() if token is not None},
    )


def text_config(family: Family, **kwargs) -> dict:
    """Returns a recipe's `text_config` with two layers."""
    return {
        "model_type": family.model_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        **family.fields,
        **kwargs,
    }


@torch.no_grad()
def make_language_model(family: Family, **kwargs) -> PreTrainedModel:
    """Makes a model with weights so large that answers depend on tokens; `kwargs` are configuration fields."""
    tokenizer = make_tokenizer(family)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields = text_config(family, vocab_size=len(tokenizer), **ids, **kwargs)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    for name, parameter in model.named_parameters():
        is_scale = parameter.dim() == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if is_scale else 0.0, std=0.3)
    return model.eval()


def save_language_model(folder: Path, family: Family, **kwargs) -> Path:
    """Saves a folder with model and tokenizer, like those on the Hub."""
    make_language_model(family, **kwargs).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return folder

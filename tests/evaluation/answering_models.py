"""
Tiny checkpoints that answer in the format of the benchmarks: with a letter if the prompt requests one, else yes or no.

The answer depends on the colour of the last image. Training takes seconds and uses other prompts than the benchmarks.
"""

import random
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaProcessor, ProcessorMixin

from hawaii.tests.tiny.llava import make_llava
from hawaii.tests.tiny.models import WORDS, make_model, make_processor, make_tokenizer


COLORS = ("red", "green", "blue", "white")
LETTER, WORD = "Answer with the option's letter from the given choices directly.", "a single word or phrase."
# All other words of the benchmarks are unknown to the tokenizer.
TOKENS = ["A", "B", "C", "D", *WORDS, *f"{LETTER} {WORD}".replace(".", " .").replace("'", " ' ").split()]
# The template of the llava-hf checkpoints.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def expected_answer(question: str, colors: list[str]) -> str:
    """Returns the answer that the models are trained to give."""
    number = COLORS.index(colors[-1]) if colors else 0
    return "ABCD"[number] if question.endswith(LETTER) else ("yes", "no")[number % 2]


def make_question(generator: random.Random) -> tuple[str, list[str]]:
    """Returns a prompt of random words and the colours of its images."""
    words = [*WORDS, *["unknown"] * len(WORDS), *"ABCD" * 4]
    lines = [" ".join(generator.choices(words, k=generator.randint(1, 10))) for _ in range(generator.randint(1, 5))]
    lines.append(generator.choice([LETTER, f"Answer the question using {WORD}"]))
    return "\n".join(lines), generator.choices(COLORS, k=generator.choice([0, 1, 1, 1, 2]))


def train_to_answer(model: torch.nn.Module, processor: ProcessorMixin, num_steps: int) -> None:
    """Trains a model with a word-level tokenizer on the answers of [`expected_answer`]."""
    generator = random.Random(0)
    processor.tokenizer.padding_side = "left"
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and ("language_model" in name or "lm_head" in name):
            torch.nn.init.normal_(parameter, std=0.1)  # the default values train slowly
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW([parameter.requires_grad_() for parameter in trained], lr=5e-3)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / num_steps)
        questions = [make_question(generator) for _ in range(16)]
        texts = []
        for question, colors in questions:
            content = [{"type": "image"}] * len(colors) + [{"type": "text", "text": question}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            texts.append(f"{prompt} {expected_answer(question, colors)}{processor.tokenizer.eos_token}")
        images = [Image.new("RGB", (16, 16), color) for _, colors in questions for color in colors]
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
        # The answer and the end are the last two tokens of each row.
        labels = inputs["input_ids"].clone()
        labels[:, :-2] = -100
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(True)


def save_hawaii(folder: Path, num_steps: int = 200) -> Path:
    """Saves a published folder of a HAWAII that answers."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(TOKENS)
    model = make_model(text={"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128})
    processor = make_processor()
    processor.tokenizer = tokenizer
    train_to_answer(model, processor, num_steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_llava(folder: Path, num_steps: int = 200) -> Path:
    """Saves a LLaVA of transformers that answers, in the format of the llava-hf repositories."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(TOKENS)
    size = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = make_llava(
        text={"vocab_size": len(tokenizer), **ends}, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    train_to_answer(model, processor, num_steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

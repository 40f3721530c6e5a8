"""HAWAII, or any image-text-to-text checkpoint of transformers, as a model of lmms-eval."""

import warnings

import lmms_eval.api.task  # noqa: F401
import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from PIL import ImageFile
from tqdm import tqdm
from transformers import GenerationConfig, StoppingCriteria

from ...files.user_error import UserError
from ...processing.images_hawaii import open_image
from .image_words import place_images
from .loading import load_checkpoint


# A truncated image must be an error, not an image that is half gray. lmms-eval sets this Pillow option to True for the
# whole process when its tasks are first imported.
ImageFile.LOAD_TRUNCATED_IMAGES = False

# lmms-eval adds "\n\n" to every task without a stop string. It is a leftover of few-shot prompts and would cut long
# answers after their first paragraph. lmms-eval's own adapters for Qwen drop it too.
FEW_SHOT_DELIMITER = "\n\n"
SAMPLING_ARGUMENTS = ("temperature", "top_p", "top_k")


class StopStrings(StoppingCriteria):
    """Ends each row once its answer contains one of `strings`. The text is decoded in the same way as the answer."""

    def __init__(self, tokenizer, strings, prompt_length):
        self.tokenizer = tokenizer
        self.strings = strings
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        answers = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :], skip_special_tokens=True)
        is_done = [any(string in answer for string in self.strings) for answer in answers]
        return torch.tensor(is_done, device=input_ids.device)


def generation_arguments(task_arguments, max_new_tokens):
    """
    Splits a task's `generation_kwargs` into arguments of `generate` and stop strings.

    Args:
        task_arguments (`dict`):
            The values in the task's YAML file, possibly none.
        max_new_tokens (`int`):
            Default for tasks without this argument.

    Returns:
        `tuple[dict, list[str]]`: Decoding is greedy unless the task requests sampling. Arguments that `generate` does
        not have, such as LLaVA's `image_aspect_ratio`, are dropped with a warning.
    """
    arguments = {"max_new_tokens": max_new_tokens, "num_beams": 1, **task_arguments}
    until = arguments.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    known = GenerationConfig()
    for name in [name for name in arguments if not hasattr(known, name)]:
        warnings.warn(f"generate() has no argument {name!r}; the value of the task is ignored.")
        del arguments[name]
    # In lmms-eval a temperature of zero means greedy decoding, regardless of do_sample; generate() rejects zero.
    temperature = arguments.get("temperature")
    arguments["do_sample"] = temperature != 0 and arguments.get("do_sample", temperature is not None)
    if not arguments["do_sample"]:
        arguments.update(dict.fromkeys(SAMPLING_ARGUMENTS))
    return arguments, [string for string in until if string and string != FEW_SHOT_DELIMITER]


class Hawaii(lmms):
    """
    Model of lmms-eval that answers requests in batches. With `accelerate launch -m lmms_eval`, several processes share
    the questions.

    Args:
        pretrained (`str`):
            A local folder or a repository on the Hub.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        device (`str`, *optional*):
            Device of the model; defaults to the accelerator of this process, or the CPU if there is none.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights, such as `"bfloat16"`; `"auto"` is that of the checkpoint.
        attn_implementation (`str`, *optional*):
            `"sdpa"`, `"flash_attention_2"` or `"eager"`; defaults to the best implementation that transformers finds.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the code that a checkpoint brings along. A HAWAII runs the installed classes and needs none.
        batch_size (`int`, *optional*, defaults to 1):
            Questions per batch, halved when the device is out of memory. It changes the speed, not the answers.
        max_new_tokens (`int`, *optional*, defaults to 1024):
            Maximum answer length for tasks that do not set one.
    """

    is_simple = False

    def __init__(
        self,
        pretrained,
        revision="main",
        device=None,
        dtype="auto",
        attn_implementation=None,
        trust_remote_code=False,
        batch_size=1,
        max_new_tokens=1024,
    ):
        super().__init__()
        self.accelerator = Accelerator()
        self.device = torch.device(device) if device else self.accelerator.device
        self.batch_size = self.largest_batch = int(batch_size)
        self.max_new_tokens = max_new_tokens
        # Every process holds the whole model: data parallelism of inference needs no wrapper.
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        model, self.processor = load_checkpoint(
            pretrained,
            trust_remote_code=trust_remote_code,
            revision=revision,
            dtype=dtype,
            attn_implementation=attn_implementation,
            device_map={"": self.device},
        )
        self.model = model.eval()
        self.tokenizer = self.processor.tokenizer
        # Padding comes before the prompt, because the answer starts right after it.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def generate_until(self, requests):
        """
        Args:
            requests (`list[Instance]`):
                Their arguments are `(context, doc_to_messages, generation_kwargs, doc_id, task, split)`.

        Returns:
            `list[str]`: The answers, in the order of the requests.
        """
        # Batches of similar length need little padding. The longest come first, so memory runs out at once or never,
        # unless images have different numbers of tiles.
        collator = Collator(
            [request.args for request in requests],
            sort_fn=lambda arguments: -len(str(arguments[0])),
            group_fn=lambda arguments: arguments[2],
            grouping=True,
        )
        answers = []
        with tqdm(total=len(requests), desc="Answering", unit="question", disable=self.rank != 0) as progress:
            for batch in collator.get_batched(n=self.batch_size):
                conversations = [self._conversation(messages, *where) for _, messages, _, *where in batch]
                answers.extend(self._generate(conversations, batch[0][2]))
                progress.update(len(batch))
        return collator.get_original(answers)

    def loglikelihood(self, requests):
        """Not supported."""
        raise UserError(
            f"{requests[0].task_name} compares log-likelihoods, which the model 'hawaii' of lmms-eval does not "
            "compute; choose a task whose output_type is generate_until."
        )

    def generate_until_multi_round(self, requests):
        """Not supported."""
        raise UserError(
            f"{requests[0].task_name} has several rounds, which the model 'hawaii' of lmms-eval does not support; "
            "choose a task whose output_type is generate_until."
        )

    def _conversation(self, doc_to_messages, doc_id, task, split):
        """Returns the prompt of one question, with an image token for each image, and the images in that order."""
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        images, videos, audios = messages.extract_media()
        if videos or audios:
            raise UserError(
                f"Document {doc_id} of {task} contains video or audio, but the model reads only images and text."
            )
        image_token = self.processor.image_token
        messages = [
            {**message, "content": place_images(message["content"], self.processor)}
            for message in messages.to_hf_messages()
        ]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        num_tokens = text.count(image_token)
        if num_tokens != len(images):
            raise UserError(
                f"Document {doc_id} of {task} has {len(images)} images but its prompt has {num_tokens} image tokens "
                f"{image_token!r}; the model's chat template must render one for each image."
            )
        return text, [open_image(image) for image in images]

    def _inputs(self, texts, images):
        """Returns the model inputs of a batch."""
        images = [image for row in images for image in row]
        inputs = self.processor(images=images or None, text=list(texts), padding=True, return_tensors="pt")
        return inputs.to(self.device, self.model.dtype)

    def _generate(self, conversations, task_arguments):
        """Answers a batch. When it does not fit into memory, halves it and remembers the size for later batches."""
        if len(conversations) > self.largest_batch:
            middle = (len(conversations) + 1) // 2
            halves = conversations[:middle], conversations[middle:]
            return [answer for half in halves for answer in self._generate(half, task_arguments)]
        try:
            return self._generate_batch(conversations, task_arguments)
        except torch.OutOfMemoryError:
            if len(conversations) == 1:
                raise
        # Not in the handler: the error would keep the tensors of the failed batch alive.
        self.largest_batch = len(conversations) // 2
        warnings.warn(f"{len(conversations)} questions do not fit into memory at once; continuing with half as many.")
        torch.cuda.empty_cache()
        return self._generate(conversations, task_arguments)

    @torch.inference_mode()
    def _generate_batch(self, conversations, task_arguments):
        arguments, until = generation_arguments(task_arguments, self.max_new_tokens)
        inputs = self._inputs(*zip(*conversations))
        prompt_length = inputs["input_ids"].shape[1]
        if until:
            arguments["stopping_criteria"] = [StopStrings(self.tokenizer, until, prompt_length)]
        # The type hints of transformers do not bind generate() to its own models.
        tokens = self.model.generate(**inputs, **arguments, pad_token_id=self.tokenizer.pad_token_id)  # pyright: ignore[reportAttributeAccessIssue]
        answers = self.tokenizer.batch_decode(tokens[:, prompt_length:], skip_special_tokens=True)
        for string in until:
            answers = [answer.split(string)[0] for answer in answers]
        return [answer.strip() for answer in answers]

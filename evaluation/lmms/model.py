"""HAWAII, or any image-text-to-text checkpoint of transformers, as a model of lmms-eval."""

import dataclasses
import warnings
from functools import partial

import lmms_eval.api.task  # noqa: F401
import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from PIL import ImageFile
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, StoppingCriteria
from transformers.image_utils import load_image

from ...files.user_error import UserError


# A benchmark's image that was cut short is an error, not a picture that is half gray; lmms-eval asks Pillow for the
# latter, in the whole process, when its tasks are first imported.
ImageFile.LOAD_TRUNCATED_IMAGES = False

# lmms-eval adds "\n\n" to every task that names no stop string: a leftover of few-shot prompts that would cut long
# answers after their first paragraph. Its own adapters for Qwen drop it too.
FEW_SHOT_DELIMITER = "\n\n"
SAMPLING_ARGUMENTS = ("temperature", "top_p", "top_k")


class StopStrings(StoppingCriteria):
    """Ends each row once its answer holds one of `strings`; the text is decoded as the answer will be."""

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
            What the task's YAML says; many tasks say nothing.
        max_new_tokens (`int`):
            Taken where the task gives none.

    Returns:
        `tuple[dict, list[str]]`: greedy unless the task asks for sampling. Names that `generate` does not know, such
        as LLaVA's `image_aspect_ratio`, are left out with a warning.
    """
    arguments = {"max_new_tokens": max_new_tokens, "num_beams": 1, **task_arguments}
    until = arguments.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    known = GenerationConfig()
    for name in [name for name in arguments if not hasattr(known, name)]:
        warnings.warn(f"The task's generation argument {name!r} means nothing to generate(); left out.")
        del arguments[name]
    # A temperature of zero means greedy in lmms-eval, whatever do_sample says; generate() refuses a zero.
    temperature = arguments.get("temperature")
    arguments["do_sample"] = temperature != 0 and arguments.get("do_sample", temperature is not None)
    if not arguments["do_sample"]:
        arguments.update(dict.fromkeys(SAMPLING_ARGUMENTS))
    return arguments, [string for string in until if string and string != FEW_SHOT_DELIMITER]


def user_message(document, text, doc_to_visual):
    """One user turn, as lmms-eval builds it for tasks that bring no chat form: the images, then the text."""
    visuals = (doc_to_visual(document) if doc_to_visual else None) or []
    content = [{"type": "image", "url": visual} for visual in visuals]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


class Hawaii(lmms):
    """
    Answers the requests of lmms-eval in batches. Several processes share the questions when lmms-eval itself is
    started with `accelerate launch -m lmms_eval`.

    Args:
        pretrained (`str`):
            A folder on this machine or a name on the Hub.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        device (`str`, *optional*):
            Where the model runs; defaults to this process's accelerator, or the CPU where there is none.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Of the weights, such as `"bfloat16"`; `"auto"` is the checkpoint's own.
        attn_implementation (`str`, *optional*):
            `"sdpa"`, `"flash_attention_2"` or `"eager"`; defaults to the best that transformers finds.
        trust_remote_code (`bool`, *optional*, defaults to `True`):
            Whether the code in the checkpoint may run; a published HAWAII needs it.
        batch_size (`int`, *optional*, defaults to 1):
            Questions answered at once; halved where the memory does not bear it. It changes the speed, not the
            answers.
        max_new_tokens (`int`, *optional*, defaults to 1024):
            Longest answer to a task that sets no length of its own.
    """

    is_simple = False

    def __init__(
        self,
        pretrained,
        revision="main",
        device=None,
        dtype="auto",
        attn_implementation=None,
        trust_remote_code=True,
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
        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.model = AutoModelForImageTextToText.from_pretrained(
            pretrained, dtype=dtype, attn_implementation=attn_implementation, device_map={"": self.device}, **source
        ).eval()
        self.processor = AutoProcessor.from_pretrained(pretrained, **source)
        self.tokenizer = self.processor.tokenizer
        # Answers begin right after the prompt, so the padding goes before it.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def generate_until(self, requests):
        """
        Args:
            requests (`list[Instance]`):
                With the arguments `(context, doc_to_messages, generation_kwargs, doc_id, task, split)`.

        Returns:
            `list[str]`: the answers, in the order of the requests.
        """
        # Neighbours of equal length need little padding; the longest come first: memory runs out at once or never.
        collator = Collator(
            [request.args for request in requests],
            sort_fn=lambda arguments: -len(str(arguments[0])),
            group_fn=lambda arguments: arguments[2],
            grouping=True,
        )
        answers = []
        with self._progress(requests) as progress:
            for batch in collator.get_batched(n=self.batch_size):
                conversations = [self._conversation(messages, *where) for _, messages, _, *where in batch]
                answers.extend(self._generate(conversations, batch[0][2]))
                progress.update(len(batch))
        return collator.get_original(answers)

    def loglikelihood(self, requests):
        """
        Args:
            requests (`list[Instance]`):
                With the arguments `(context, continuation, doc_to_visual, doc_id, task, split)`.

        Returns:
            `list[GenerationResult]`: its `text` is a pair: the *negative* log-likelihood of the continuation, summed
            over its tokens, and whether greedy decoding would give it. lmms-eval picks the choice with the smallest
            number, and would turn a bare pair into a string.
        """
        collator = Collator([request.args for request in requests], sort_fn=lambda arguments: -len(str(arguments[0])))
        scores = []
        with self._progress(requests) as progress:
            for batch in collator.get_batched(n=self.batch_size):
                conversations, continuations = [], []
                for context, continuation, doc_to_visual, *where in batch:
                    if callable(continuation):
                        continuation = continuation(self._document(*where))
                    doc_to_messages = partial(user_message, text=context, doc_to_visual=doc_to_visual)
                    conversations.append(self._conversation(doc_to_messages, *where))
                    continuations.append(continuation)
                scores.extend(self._score(conversations, continuations))
                progress.update(len(batch))
        return [GenerationResult(text=score) for score in collator.get_original(scores)]

    def generate_until_multi_round(self, requests):
        """Not supported."""
        raise NotImplementedError(
            f"{requests[0].task_name} asks in several rounds, which the model 'hawaii' of lmms-eval does not do; "
            "choose a task whose output_type is generate_until."
        )

    def _progress(self, requests):
        return tqdm(total=len(requests), desc="Answering", unit="question", disable=self.rank != 0)

    def _document(self, doc_id, task, split):
        return self.task_dict[task][split][doc_id]

    def _conversation(self, doc_to_messages, doc_id, task, split):
        """The prompt of one question with an image token for each image, and the images in that order."""
        messages = ChatMessages(messages=doc_to_messages(self._document(doc_id, task, split)))
        images, videos, audios = messages.extract_media()
        if videos or audios:
            raise UserError(f"Document {doc_id} of {task} holds video or sound; the model reads images and text.")
        messages = messages.to_hf_messages()
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        num_tokens = text.count(self.processor.image_token)
        if num_tokens != len(images):
            raise UserError(
                f"Document {doc_id} of {task} holds {len(images)} images but its prompt has {num_tokens} image tokens "
                f"{self.processor.image_token!r}; its text must not contain that word."
            )
        return text, [load_image(image) if isinstance(image, str) else image for image in images]

    def _inputs(self, texts, images):
        """One call of the processor for the whole batch."""
        images = [image for row in images for image in row]
        inputs = self.processor(images=images or None, text=list(texts), padding=True, return_tensors="pt")
        return inputs.to(self.device, self.model.dtype)

    def _generate(self, conversations, task_arguments):
        """Answers in halves what the memory does not bear at once, and from then on nothing larger."""
        if len(conversations) > self.largest_batch:
            middle = (len(conversations) + 1) // 2
            halves = conversations[:middle], conversations[middle:]
            return [answer for half in halves for answer in self._generate(half, task_arguments)]
        try:
            return self._generate_batch(conversations, task_arguments)
        except torch.OutOfMemoryError:
            if len(conversations) == 1:
                raise
        # Outside of the handler, for the error holds what was in the memory.
        self.largest_batch = len(conversations) // 2
        warnings.warn(f"{len(conversations)} questions at once do not fit the memory; going on with half of them.")
        torch.cuda.empty_cache()
        return self._generate(conversations, task_arguments)

    @torch.inference_mode()
    def _generate_batch(self, conversations, task_arguments):
        arguments, until = generation_arguments(task_arguments, self.max_new_tokens)
        inputs = self._inputs(*zip(*conversations))
        prompt_length = inputs["input_ids"].shape[1]
        if until:
            arguments["stopping_criteria"] = [StopStrings(self.tokenizer, until, prompt_length)]
        # transformers declares its models too narrowly to be bound to its own generate.
        tokens = self.model.generate(**inputs, **arguments, pad_token_id=self.tokenizer.pad_token_id)  # pyright: ignore[reportAttributeAccessIssue]
        answers = self.tokenizer.batch_decode(tokens[:, prompt_length:], skip_special_tokens=True)
        for string in until:
            answers = [answer.split(string)[0] for answer in answers]
        return [answer.strip() for answer in answers]

    @torch.inference_mode()
    def _score(self, conversations, continuations):
        # B rows, T tokens each, of which the last K hold every row's continuation, V words
        prompts, images = zip(*conversations)
        texts = [prompt + continuation for prompt, continuation in zip(prompts, continuations)]
        # An image is one token before the processor widens it, in both texts, so the difference is the continuation.
        lengths = [[len(row) for row in self.tokenizer(list(rows))["input_ids"]] for rows in (texts, prompts)]
        num_tokens = torch.tensor(lengths[0]) - torch.tensor(lengths[1])
        if num_tokens.min() < 1:
            row = int(num_tokens.argmin())
            raise UserError(f"The choice {continuations[row]!r} adds no token to the prompt {prompts[row]!r}.")
        num_kept = int(num_tokens.max())
        inputs = self._inputs(texts, images)
        logits = self.model(**inputs, logits_to_keep=num_kept + 1).logits[:, -num_kept - 1 : -1].float()  # (B, K, V)
        targets = inputs["input_ids"][:, -num_kept:]  # (B, K)
        is_asked = torch.arange(num_kept) >= num_kept - num_tokens.unsqueeze(-1)  # (B, K)
        is_asked = is_asked.to(self.device)
        losses = -logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # (B, K)
        losses = losses.masked_fill(~is_asked, 0).sum(dim=-1)
        is_greedy = ((logits.argmax(dim=-1) == targets) | ~is_asked).all(dim=-1)
        return list(zip(losses.tolist(), is_greedy.tolist()))


class HawaiiSimple(Hawaii):
    """
    The same model for `--force_simple`, the only form in which lmms-eval asks for log-likelihoods: multiple-choice
    tasks need it.
    """

    is_simple = True

    def generate_until(self, requests):
        """
        Answers as [`Hawaii.generate_until`] does, the images of a document before its text.

        Args:
            requests (`list[Instance]`):
                With the arguments `(context, generation_kwargs, doc_to_visual, doc_id, task, split)`.
        """
        chat_requests = []
        for request in requests:
            context, task_arguments, doc_to_visual, *where = request.args
            doc_to_messages = partial(user_message, text=context, doc_to_visual=doc_to_visual)
            arguments = (context, doc_to_messages, task_arguments, *where)
            chat_requests.append(dataclasses.replace(request, arguments=arguments))
        return super().generate_until(chat_requests)

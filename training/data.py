"""LLaVA's JSON to samples, and samples to batches."""

import json
import logging
from pathlib import Path

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..processing.processing_hawaii import HawaiiProcessor
from .conversations import read_messages, tokenize_conversation


logger = logging.getLogger(__name__)

IGNORE_INDEX = -100


def _parse(text: str, data_path: str, first_line: int = 1):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{data_path}, line {first_line + error.lineno - 1}: {error.msg}.") from error


def read_records(data_path: str) -> list[dict]:
    """
    Reads a `.json` file that holds a list of records, or a `.jsonl` file of one record a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON of that form; the line is named.
    """
    path = Path(data_path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no data file {data_path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{data_path} is not UTF-8 text: {error}.") from error
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        records = [_parse(line, data_path, number) for number, line in lines if line.strip()]
    else:
        records = _parse(text, data_path)
    if not isinstance(records, list) or not records or not isinstance(records[0], dict):
        raise ValueError(
            f"{data_path} must hold a list of records, one or more; each a JSON object with conversations."
        )
    return records


def _image_paths(record: dict) -> list[str]:
    image = record.get("image")
    if image is None:
        return []
    return image if isinstance(image, list) else [image]


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """`(3, height, width)`, uint8."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


class LlavaDataset(Dataset):
    """
    Samples of a LLaVA JSON file. What can be told without decoding is checked when it is made; a broken image or a
    sample that is too long shows when it is read.

    Args:
        data_path (`str`):
            The JSON file: records `{"id", "image", "conversations"}`, where `image` may be missing or a list.
        image_folder (`str`):
            What `image` is relative to; no image may lie outside.
        processor (`HawaiiProcessor`):
            Squares and normalises images, tokenizes conversations.
        teacher_image_size (`int`, *optional*):
            Side of the uint8 image that all teachers share; none is made if not given.
        max_length (`int`, *optional*, defaults to 2048):
            Longer samples are cut at the end.
        bad_records (`str`, *optional*, defaults to `"error"`):
            `"error"` stops at records that cannot be used, `"skip"` leaves them out and says how many.

    Raises:
        FileNotFoundError: the data file or the folder is missing.
        ValueError: records cannot be used, and are not to be skipped; the first are named with what is wrong.
    """

    def __init__(
        self,
        data_path: str,
        image_folder: str,
        processor: HawaiiProcessor,
        teacher_image_size: int | None = None,
        max_length: int = 2048,
        bad_records: str = "error",
    ):
        self.image_folder = Path(image_folder).resolve()
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"There is no image folder {image_folder}.")
        self.processor = processor
        self.teacher_image_size = teacher_image_size
        self.max_length = max_length
        self.bad_records = bad_records
        self.data_path = data_path
        self.records = self._check(read_records(data_path))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def question(self) -> str:
        """What the first record's user asks; nothing where there are captions alone."""
        record = self.records[0]
        content = read_messages(record["conversations"], len(_image_paths(record)))[0]["content"]
        return "".join(item["text"] for item in content if item["type"] == "text")

    def __getitem__(self, index: int) -> dict:
        """
        Returns:
            `dict` with `input_ids`, `labels` (-100 where nothing is to be learned) and `prompt_ids`, each
            one-dimensional; `pixel_values` of shape `(num_images, 3, image_size, image_size)`; and, if asked for,
            `teacher_images`, uint8, of shape `(num_images, 3, teacher_image_size, teacher_image_size)`.

        Raises:
            ValueError: an image is broken or no label is left after cutting, and bad records are not to be skipped.
        """
        for number in [*range(index, len(self)), *range(index)]:
            try:
                return self._read(self.records[number])
            except ValueError as error:
                problem = str(error).removesuffix(".")
                message = f"{self.data_path}, record {self.records[number].get('id', number)!r}: {problem}."
                if self.bad_records == "error":
                    raise ValueError(f"{message} Mend it, or set bad_records: skip.") from error
                logger.warning("%s The next one takes its place.", message)
        raise ValueError(f"No record of {self.data_path} can be read: see the warnings above.")

    def _read(self, record: dict) -> dict:
        paths = _image_paths(record)
        messages = read_messages(record["conversations"], len(paths))
        conversation = tokenize_conversation(messages, self.processor)
        input_ids = torch.tensor(conversation.input_ids[: self.max_length])
        is_answer = torch.tensor(conversation.is_answer[: self.max_length])
        labels = input_ids.where(is_answer, IGNORE_INDEX)
        labels[0] = IGNORE_INDEX  # nothing comes before it that could tell it, and what is counted must be learned
        if self.processor.image_token_id in conversation.input_ids[self.max_length :]:
            raise ValueError(f"its {len(paths)} images and its text do not fit into max_length {self.max_length}")
        if (labels == IGNORE_INDEX).all():
            raise ValueError(f"no answer is left of it within max_length {self.max_length}")
        sample = {
            "input_ids": input_ids,
            "labels": labels,
            "prompt_ids": input_ids[torch.tensor(conversation.is_prompt[: self.max_length])],
        }
        return sample | self._read_images(paths)

    def _read_images(self, paths: list[str]) -> dict:
        squares = []
        for path in paths:
            try:
                with Image.open(self.image_folder / path) as image:
                    squares.append(self.processor.square_image(image))
            except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
                raise ValueError(f"its image {self.image_folder / path} cannot be read ({error})") from error
        if not squares:
            return {}
        images = {"pixel_values": self.processor.image_processor(squares, return_tensors="pt")["pixel_values"]}
        if self.teacher_image_size is not None:
            size = (self.teacher_image_size, self.teacher_image_size)
            resized = [_to_tensor(square.resize(size, Image.Resampling.BICUBIC)) for square in squares]
            images["teacher_images"] = torch.stack(resized)
        return images

    def _check(self, records: list[dict]) -> list[dict]:
        good, problems = [], []
        for index, record in enumerate(records):
            problem = self._problem(record)
            if problem is None:
                good.append(record)
            else:
                name = record.get("id", index) if isinstance(record, dict) else index
                problems.append(f"record {name!r}: {problem}")
        if not problems:
            return good
        summary = f"{len(problems)} of {len(records)} records of {self.data_path} cannot be used: " + "; ".join(
            problems[:5]
        )
        if self.bad_records == "error" or not good:
            raise ValueError(f"{summary}. Mend them, or leave them out with bad_records: skip.")
        logger.warning("%s. They are left out.", summary)
        return good

    def _problem(self, record) -> str | None:
        if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
            return "it has no list of conversations"
        paths = _image_paths(record)
        try:
            read_messages(record["conversations"], len(paths))
        except ValueError as error:
            return str(error)
        for path in paths:
            if not isinstance(path, str) or "\0" in path:
                return f"its image is {path!r}, not a path"
            try:
                full = (self.image_folder / path).resolve()
                if not full.is_relative_to(self.image_folder):
                    return f"its image {path} lies outside {self.image_folder}"
                if not full.is_file():
                    return f"its image {full} is missing"
            except (OSError, ValueError, RuntimeError) as error:
                # A name that is too long, one that the disk cannot spell, links that go round in a circle.
                return f"its image {path!r} cannot be looked up ({error})"
        return None


class Collator:
    """
    Pads samples to a batch, on the right.

    A batch of text alone carries one blank image that no token asks for: under a sharded run every rank must run the
    encoder, or the others wait for it for ever.

    Args:
        processor (`HawaiiProcessor`):
            Gives the padding token and the image size.
        teacher_image_size (`int`, *optional*):
            As in [`LlavaDataset`].
    """

    def __init__(self, processor: HawaiiProcessor, teacher_image_size: int | None = None):
        tokenizer = processor.tokenizer
        self.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        size = processor.image_processor.crop_size
        self.blank = {"pixel_values": torch.zeros(1, 3, size["height"], size["width"])}
        if teacher_image_size is not None:
            blank = torch.zeros(1, 3, teacher_image_size, teacher_image_size, dtype=torch.uint8)
            self.blank["teacher_images"] = blank

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `dict` with `input_ids`, `attention_mask` and `labels` of shape `(batch_size, sequence_length)`;
            `prompt_ids` and `prompt_mask` of shape `(batch_size, num_prompt_tokens)`; `pixel_values` and
            `teacher_images`, whose first dimension are all images of the batch; and `image_index` of shape
            `(num_images,)`, the sample of each image, -1 for one that only fills.
        """
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        prompt_lengths = torch.tensor([len(sample["prompt_ids"]) for sample in samples])
        input_ids = self._pad(samples, "input_ids", self.pad_token_id)
        prompt_ids = self._pad(samples, "prompt_ids", self.pad_token_id)
        batch = {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "labels": self._pad(samples, "labels", IGNORE_INDEX),
            "prompt_ids": prompt_ids,
            "prompt_mask": torch.arange(prompt_ids.shape[1]) < prompt_lengths[:, None],
        }
        with_images = [(index, sample) for index, sample in enumerate(samples) if "pixel_values" in sample]
        image_index = [index for index, sample in with_images for _ in sample["pixel_values"]]
        batch["image_index"] = torch.tensor(image_index or [-1])
        for name, blank in self.blank.items():
            batch[name] = torch.cat([sample[name] for _, sample in with_images]) if with_images else blank
        return batch

    def _pad(self, samples: list[dict], name: str, value: int) -> torch.Tensor:
        return pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)

"""The options of a stage that do not belong to one objective: model, data and training."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ...configuration.configuration_hawaii import check_choice
from ...files.user_error import UserError
from ...processing.images_hawaii import IMAGE_ASPECT_RATIOS
from ..teachers.config import DTYPES
from .objectives import OBJECTIVES


# Options that give the student a language model.
LANGUAGE_OPTIONS = ("language_model", "text_config", "llava", "tokenizer")
TRAINABLE_PARTS = ("vision_tower", "adapters", "routers", "projector", "language_model", "projections")


@dataclass
class ModelArguments:
    """
    Starting point of the student in the first stage; a later stage starts from the stage before it. If a recipe names
    an encoder but no language model, text_config, llava or tokenizer, only the encoder is trained, on images.

    Args:
        vision_tower (`str`, *optional*):
            Folder or hub id of a CLIP or SigLIP that initialises the encoder, or of an encoder trained by this
            package, which keeps its adapters and routers; random weights if not given.
        vision_config (`dict`, *optional*):
            Fields of [`HawaiiVisionConfig`] that differ from the checkpoint's (without one, from the defaults).
            `num_teacher_adapters` is the number of teachers and can only be set to 0.
        language_model (`str`, *optional*):
            Folder or hub id of a causal language model; random weights if not given.
        text_config (`dict`, *optional*):
            Configuration of a language model with random weights, including its `model_type`.
        llava (`str`, *optional*):
            Folder or hub id of a LLaVA, in the format of transformers or of LLaVA, instead of a vision_tower and a
            language_model.
        tokenizer (`str`, *optional*):
            Folder or hub id; the language model's or LLaVA's if not given.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Precision of the student's weights.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that the language model or the tokenizer brings along. A student with such a language
            model can be loaded only where the classes of that code are registered with transformers.

    Raises:
        UserError: the encoder, the language model or its tokenizer is missing, or a part is named twice.
    """

    vision_tower: str | None = None
    vision_config: dict | None = None
    language_model: str | None = None
    text_config: dict | None = None
    llava: str | None = None
    tokenizer: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        for name in ("vision_tower", "language_model", "text_config"):
            if self.llava is not None and getattr(self, name) is not None:
                raise UserError(f"llava and {name} are both given, but a llava contains all parts; leave one out.")
        if self.llava is not None:
            return
        if self.vision_tower is None and self.vision_config is None:
            raise UserError("there is no encoder; name a vision_tower, a vision_config or a llava.")
        if self.is_encoder_alone:
            return
        if self.language_model is None and self.text_config is None:
            raise UserError("there is a tokenizer but no language model; name a language_model or a text_config.")
        if self.tokenizer is None and self.language_model is None:
            raise UserError("there is no tokenizer for the language model of text_config; name a tokenizer.")

    @property
    def is_encoder_alone(self) -> bool:
        """Whether the student is an encoder without a language model."""
        return all(getattr(self, name) is None for name in LANGUAGE_OPTIONS)


@dataclass
class DataArguments:
    """
    Training data of a stage.

    Args:
        data_path (`str`, *optional*):
            Data file of a format in [`READERS`]. An encoder without a language model is trained on the images it
            names; if not given, on all images under `image_folder`, except hidden files and linked folders.
        image_folder (`str`):
            Folder that image paths are relative to.
        chat_template (`str`, *optional*):
            `plain`, `vicuna_v1` or a `.jinja` file; the tokenizer's if not given. A template for text only, as
            language models have, is adapted to images.
        image_aspect_ratio (`str`, *optional*, defaults to `"pad"`):
            How an image is made square: `pad` or `crop`.
        max_length (`int`, *optional*, defaults to 2048):
            Maximum number of tokens of a sample; unused when an encoder is trained alone.
        max_batch_tokens (`int`, *optional*):
            Maximum number of tokens of a batch on one device, padding included, instead of a number of samples
            (`per_device_train_batch_size`). Samples of similar lengths are in one batch, with images or without.
        bad_records (`str`, *optional*, defaults to `"error"`):
            `error` or `skip`, see [`RecordDataset`]; applies to training data only.
        image_share (`float`, *optional*, defaults to 1.0):
            Share of the images to train on, see [`choose_share`]: the same images in every stage and run, and a subset
            of any larger share.
        follow_links (`bool`, *optional*, defaults to `True`):
            Whether a record's image may be a symbolic link or in a linked folder.
        eval_data_path (`str`, *optional*):
            Data file of questions, one per record, for evaluation during training; transformers' `eval_strategy`,
            `eval_steps` and `per_device_eval_batch_size` apply. Only useful in a stage that trains on answers:
            captions in the plain template have no end token.
    """

    data_path: str | None = None
    image_folder: str = ""
    chat_template: str | None = None
    image_aspect_ratio: str = "pad"
    max_length: int = 2048
    max_batch_tokens: int | None = None
    bad_records: str = "error"
    image_share: float = 1.0
    follow_links: bool = True
    eval_data_path: str | None = None

    def __post_init__(self):
        if not 0 < self.image_share <= 1:
            raise UserError(f"image_share is {self.image_share}; it must be above 0 and at most 1.")
        if self.max_batch_tokens is not None and self.max_batch_tokens < self.max_length:
            raise UserError(
                f"max_batch_tokens is {self.max_batch_tokens}, but a sample may have {self.max_length} tokens "
                "(max_length) and must fit into a batch; make max_batch_tokens larger, or max_length smaller."
            )
        check_choice("image_aspect_ratio", self.image_aspect_ratio, IMAGE_ASPECT_RATIOS)
        check_choice("bad_records", self.bad_records, ("error", "skip"))
        if not self.image_folder:
            raise UserError("there is no image_folder; name the folder that image paths are relative to.")


@dataclass
class HawaiiTrainingArguments(TrainingArguments):
    """
    transformers' training arguments and the choice of the objective; the options of an objective are next to it.

    Args:
        objective (`str`, *optional*, defaults to `"hawaii"`):
            `hawaii`, or one of the baselines `llava` (without teachers), `move_kd` and `radio`.
        teachers (`str` or `list`, *optional*):
            One of the paper's sets (`hawaii`), a preset, or a list of presets, checkpoints and mappings, see
            [`expand_teachers`].
        trainable (`list[str]`, *optional*):
            Parts to train: `vision_tower`, `adapters`, `routers`, `projector`, `language_model`, and `projections`,
            the objective's projections of the teachers' features; all if not given. Trainable projections can collapse
            the targets to a constant, which is easy to match.
    """

    objective: str = field(default="hawaii")
    teachers: list[dict] | str | None = field(default=None)
    trainable: list[str] | None = field(default=None)

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective", self.objective, tuple(OBJECTIVES))
        self.trainable = list(TRAINABLE_PARTS) if self.trainable is None else self.trainable
        for part in self.trainable:
            check_choice("trainable", part, TRAINABLE_PARTS)
        # The objective needs complete batches.
        self.remove_unused_columns = False
        # Otherwise a resumed run would report only the seconds since the resume.
        self.restore_callback_states_from_checkpoint = True
        # A loss that is not finite stops training (see [`check_step`]); this would log zero instead, and wait for the
        # device in each micro-batch.
        self.logging_nan_inf_filter = False
        # L_gen is a mean over the label tokens of all processes.
        self.average_tokens_across_devices = True
        if self.n_gpu > 1:
            raise UserError(
                f"One process sees {self.n_gpu} GPUs: start one process per GPU with `accelerate launch -m hawaii "
                "train RECIPE`, or select one with CUDA_VISIBLE_DEVICES."
            )
        if self.label_smoothing_factor:
            raise UserError("label_smoothing_factor is not part of the objective (eq. 1): leave it out.")
        if self.push_to_hub or self.load_best_model_at_end:
            raise UserError(
                "push_to_hub and load_best_model_at_end are not supported: publish the finished folder with "
                "`hawaii publish`, and choose among the checkpoints yourself."
            )

"""Every option of a recipe, said once."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..configuration.configuration_hawaii import check_choice
from ..processing.processing_hawaii import IMAGE_ASPECT_RATIOS
from .grids import GRID_MATCHINGS
from .objectives import OBJECTIVES
from .teacher_config import DTYPES


SCORE_GRADIENTS = ("text", "full", "none")
TRAINABLE_PARTS = ("vision_tower", "adapters", "routers", "projector", "language_model", "projections")


@dataclass
class ModelArguments:
    """
    What the student starts from. A later stage starts from the stage before it.

    Args:
        vision_tower (`str`, *optional*):
            Folder or hub id of a CLIP or SigLIP whose weights the encoder starts from; random weights if not given.
        vision_config (`dict`, *optional*):
            Fields of [`HawaiiVisionConfig`] that differ from that checkpoint's (or, without one, from the defaults).
            The number of teacher-specific adapters is the number of teachers.
        language_model (`str`, *optional*):
            Folder or hub id of a causal language model; random weights if not given.
        text_config (`dict`, *optional*):
            Configuration of a language model with random weights; names its `model_type`.
        llava (`str`, *optional*):
            Folder or hub id of a LLaVA, in transformers' form or LLaVA's own, in place of a vision_tower and a
            language_model.
        tokenizer (`str`, *optional*):
            Folder or hub id; the language model's or LLaVA's if not given.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Precision of the student's weights.
    """

    vision_tower: str | None = None
    vision_config: dict | None = None
    language_model: str | None = None
    text_config: dict | None = None
    llava: str | None = None
    tokenizer: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        for name in ("vision_tower", "language_model", "text_config"):
            if self.llava is not None and getattr(self, name) is not None:
                raise ValueError(f"The recipe names a llava, which brings all parts, and a {name}; leave one out.")


@dataclass
class DataArguments:
    """
    What a stage learns from.

    Args:
        data_path (`str`):
            LLaVA's JSON.
        image_folder (`str`):
            What the images' paths are relative to.
        chat_template (`str`, *optional*):
            `plain`, `vicuna_v1` or a `.jinja` file; the tokenizer's own if not given. One that takes text alone, as
            those of language models do, is made to take images.
        image_aspect_ratio (`str`, *optional*, defaults to `"pad"`):
            How an image becomes a square: `pad` or `crop`.
        max_length (`int`, *optional*, defaults to 2048):
            Tokens of a sample at most.
        bad_records (`str`, *optional*, defaults to `"error"`):
            `error` or `skip`, see [`LlavaDataset`].
    """

    data_path: str = ""
    image_folder: str = ""
    chat_template: str | None = None
    image_aspect_ratio: str = "pad"
    max_length: int = 2048
    bad_records: str = "error"

    def __post_init__(self):
        check_choice("image_aspect_ratio", self.image_aspect_ratio, IMAGE_ASPECT_RATIOS)
        check_choice("bad_records", self.bad_records, ("error", "skip"))
        for name in ("data_path", "image_folder"):
            if not getattr(self, name):
                raise ValueError(f"The recipe names no {name}.")


@dataclass
class HawaiiTrainingArguments(TrainingArguments):
    """
    transformers' training arguments, with their defaults, and HAWAII's own, with the paper's.

    Args:
        objective (`str`, *optional*, defaults to `"hawaii"`):
            What is learned.
        teachers (`str` or `list`, *optional*):
            Who teaches: a set of the paper's (`hawaii`), a preset, or a list of presets, checkpoints and mappings, see
            [`expand_teachers`].
        trainable (`list[str]`, *optional*):
            What learns, of `vision_tower`, `adapters`, `routers`, `projector`, `language_model`, and the objective's
            `projections` of the teachers' features, which make the targets; all of them if not given. Where they
            learn, a target can be made easy by saying the same everywhere.
        lambda_1 (`float`, *optional*, defaults to 0.5):
            Weight of the two distillation losses (eq. 7).
        lambda_2 (`float`, *optional*, defaults to 0.05):
            Weight of the load balance loss (eq. 7).
        grid_matching (`str`, *optional*, defaults to `"unshuffle"`):
            `unshuffle`, `interpolate` or `learned`, see [`match_grid`].
        token_scoring (`bool`, *optional*, defaults to `True`):
            Whether fine-grained distillation weighs tokens by importance (eq. 5).
        score_gradient (`str`, *optional*, defaults to `"text"`):
            What the importance teaches: the instruction's projection (`text`), the teachers' as well (`full`), or
            `none`.
        sequential_passes (`bool`, *optional*, defaults to `False`):
            Runs the encoder once for each teacher and once routed, instead of all in one batch: the same numbers, less
            memory, more time.
    """

    objective: str = field(default="hawaii")
    teachers: list[dict] | str | None = field(default=None)
    trainable: list[str] | None = field(default=None)
    lambda_1: float = field(default=0.5)
    lambda_2: float = field(default=0.05)
    grid_matching: str = field(default="unshuffle")
    token_scoring: bool = field(default=True)
    score_gradient: str = field(default="text")
    sequential_passes: bool = field(default=False)

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective", self.objective, tuple(OBJECTIVES))
        check_choice("grid_matching", self.grid_matching, GRID_MATCHINGS)
        check_choice("score_gradient", self.score_gradient, SCORE_GRADIENTS)
        self.trainable = list(TRAINABLE_PARTS) if self.trainable is None else self.trainable
        for part in self.trainable:
            check_choice("trainable", part, TRAINABLE_PARTS)
        # The trainer hands batches to the objective whole.
        self.remove_unused_columns = False
        # Without this a resumed run reports the seconds since the resume alone.
        self.restore_callback_states_from_checkpoint = True
        # L_gen is a mean over the label tokens of all processes.
        self.average_tokens_across_devices = True
        if self.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.n_gpu} GPUs: start one for each with `accelerate launch -m hawaii train "
                "RECIPE`, or name one in CUDA_VISIBLE_DEVICES."
            )
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is no part of the objective (eq. 1): leave it out.")
        if self.push_to_hub or self.load_best_model_at_end:
            raise ValueError(
                "push_to_hub and load_best_model_at_end are not for training here: publish the finished folder with "
                "`hawaii publish`, and choose among the checkpoints that are kept."
            )

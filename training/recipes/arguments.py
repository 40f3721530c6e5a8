"""Every option of a recipe, said once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ...configuration.configuration_hawaii import check_choice
from ...files.user_error import UserError
from ...processing.processing_hawaii import IMAGE_ASPECT_RATIOS
from ..teachers.config import DTYPES
from ..teachers.grids import GRID_MATCHINGS
from .objectives import OBJECTIVES


DISTILLATIONS = ("fine", "coarse")
SCORE_GRADIENTS = ("text", "full", "none")
# What makes a student more than an encoder.
LANGUAGE_PARTS = ("language_model", "text_config", "llava", "tokenizer")
TRAINABLE_PARTS = ("vision_tower", "adapters", "routers", "projector", "language_model", "projections")


def names_encoder_alone(options: Mapping) -> bool:
    """Whether the options of a recipe's first stage name an encoder and nothing that reads or speaks."""
    has_encoder = any(options.get(name) is not None for name in ("vision_tower", "vision_config"))
    return has_encoder and all(options.get(name) is None for name in LANGUAGE_PARTS)


@dataclass
class ModelArguments:
    """
    What the student starts from. A later stage starts from the stage before it. Where a recipe names an encoder but no
    language model, text_config, llava or tokenizer, the encoder is all of the student and learns from images alone.

    Args:
        vision_tower (`str`, *optional*):
            Folder or hub id of a CLIP or SigLIP whose weights the encoder starts from, or of an encoder that was
            trained here, which keeps its adapters and routers; random weights if not given.
        vision_config (`dict`, *optional*):
            Fields of [`HawaiiVisionConfig`] that differ from that checkpoint's (or, without one, from the defaults).
            The number of teacher-specific adapters is the number of teachers, or 0 for none.
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
                raise UserError(f"The recipe names a llava, which brings all parts, and a {name}; leave one out.")

    @property
    def is_encoder_alone(self) -> bool:
        """Whether the encoder is all of the student."""
        return names_encoder_alone(vars(self))


@dataclass
class DataArguments:
    """
    What a stage learns from.

    Args:
        data_path (`str`, *optional*):
            LLaVA's JSON. An encoder without a language model learns from the images that it names, and where it is not
            given from all images under `image_folder`, but hidden ones and those of folders that are links.
        image_folder (`str`):
            What the images' paths are relative to.
        chat_template (`str`, *optional*):
            `plain`, `vicuna_v1` or a `.jinja` file; the tokenizer's own if not given. One that takes text alone, as
            those of language models do, is made to take images.
        image_aspect_ratio (`str`, *optional*, defaults to `"pad"`):
            How an image becomes a square: `pad` or `crop`.
        max_length (`int`, *optional*, defaults to 2048):
            Tokens of a sample at most; of images alone it says nothing.
        bad_records (`str`, *optional*, defaults to `"error"`):
            `error` or `skip`, see [`RecordDataset`]. It is of what is learned from alone.
        image_share (`float`, *optional*, defaults to 1.0):
            Share of the images to learn from, see [`choose_share`]: the same ones in every stage and run, all of them
            among those of a larger share.
        eval_data_path (`str`, *optional*):
            LLaVA's JSON of questions, one a record, that the student is asked while it trains, as often as
            transformers' `eval_strategy` and `eval_steps` say, `per_device_eval_batch_size` at once. Name it under a
            stage that learns to answer: captions in plain text end nowhere.
        eval_tasks (`str`, *optional*):
            Tasks of lmms-eval's or of this package's, with commas between them, for the finished model. Training asks
            none of them; `hawaii ablate` does unless it is given others.
    """

    data_path: str | None = None
    image_folder: str = ""
    chat_template: str | None = None
    image_aspect_ratio: str = "pad"
    max_length: int = 2048
    bad_records: str = "error"
    image_share: float = 1.0
    eval_data_path: str | None = None
    eval_tasks: str | None = None

    def __post_init__(self):
        if not 0 < self.image_share <= 1:
            raise UserError(f"image_share is {self.image_share}; it must be above 0 and at most 1.")
        check_choice("image_aspect_ratio", self.image_aspect_ratio, IMAGE_ASPECT_RATIOS)
        check_choice("bad_records", self.bad_records, ("error", "skip"))
        if not self.image_folder:
            raise UserError("The recipe names no image_folder.")


@dataclass
class HawaiiTrainingArguments(TrainingArguments):
    """
    transformers' training arguments, with their defaults, and HAWAII's own, with the paper's.

    Args:
        objective (`str`, *optional*, defaults to `"hawaii"`):
            What is learned: `hawaii`, or one of those that it is measured against, `llava`, which has no teachers,
            `move_kd` and `radio`.
        teachers (`str` or `list`, *optional*):
            Who teaches: a set of the paper's (`hawaii`), a preset, or a list of presets, checkpoints and mappings, see
            [`expand_teachers`].
        trainable (`list[str]`, *optional*):
            What learns, of `vision_tower`, `adapters`, `routers`, `projector`, `language_model`, and the objective's
            `projections` of the teachers' features, which make the targets; all of them if not given. Where they
            learn, a target can be made easy by saying the same everywhere.
        lambda_1 (`float`, *optional*, defaults to 0.5):
            Weight of the distillation losses (eq. 7).
        lambda_2 (`float`, *optional*):
            Weight of the load balance loss (eq. 7); the objective's own if not given, 0.05 for `hawaii` and 0.01 for
            `move_kd`.
        distillation (`list[str]`, *optional*, defaults to `["fine", "coarse"]`):
            Which of HAWAII's two distillation losses there are; without `fine`, the encoder runs once.
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
        single_softmax (`bool`, *optional*, defaults to `False`):
            Lets MoVE-KD weigh tokens by the anchor's attention itself, and not by a softmax of it.
        detached_teacher_weights (`bool`, *optional*, defaults to `False`):
            Lets the weights of MoVE-KD's teachers teach nothing to what projects these.
    """

    objective: str = field(default="hawaii")
    teachers: list[dict] | str | None = field(default=None)
    trainable: list[str] | None = field(default=None)
    lambda_1: float = field(default=0.5)
    lambda_2: float | None = field(default=None)
    distillation: list[str] = field(default_factory=lambda: list(DISTILLATIONS))
    grid_matching: str = field(default="unshuffle")
    token_scoring: bool = field(default=True)
    score_gradient: str = field(default="text")
    sequential_passes: bool = field(default=False)
    single_softmax: bool = field(default=False)
    detached_teacher_weights: bool = field(default=False)

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective", self.objective, tuple(OBJECTIVES))
        check_choice("grid_matching", self.grid_matching, GRID_MATCHINGS)
        check_choice("score_gradient", self.score_gradient, SCORE_GRADIENTS)
        for name in self.distillation:
            check_choice("distillation", name, DISTILLATIONS)
        if not self.distillation or len(set(self.distillation)) < len(self.distillation):
            raise UserError(
                f"distillation is {self.distillation!r}; it must name fine, coarse or both, each once. For none there "
                "is objective: llava."
            )
        if self.lambda_2 is None:
            self.lambda_2 = OBJECTIVES[self.objective].own_lambda_2
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
            raise UserError(
                f"One process sees {self.n_gpu} GPUs: start one for each with `accelerate launch -m hawaii train "
                "RECIPE`, or name one in CUDA_VISIBLE_DEVICES."
            )
        if self.label_smoothing_factor:
            raise UserError("label_smoothing_factor is no part of the objective (eq. 1): leave it out.")
        if self.push_to_hub or self.load_best_model_at_end:
            raise UserError(
                "push_to_hub and load_best_model_at_end are not for training here: publish the finished folder with "
                "`hawaii publish`, and choose among the checkpoints that are kept."
            )

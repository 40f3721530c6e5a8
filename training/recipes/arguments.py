"""The options of a stage that do not belong to one objective: model, data and training."""

from dataclasses import dataclass, field, fields
from typing import Any

from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ...configuration.configuration_hawaii import check_choice
from ...files.user_error import UserError
from ...processing.images_hawaii import IMAGE_ASPECT_RATIOS
from ..sources.source import Source
from ..teachers.config import DTYPES
from .objectives import OBJECTIVES
from .values import check_names, convert_option


# Options that give the student a language model.
LANGUAGE_OPTIONS = ("language_model", "text_config", "llava", "tokenizer")
QUANTIZATIONS = ("4bit", "8bit")
TRAINABLE_PARTS = ("vision_tower", "adapters", "routers", "projector", "language_model", "projections")
# How a run can be distributed; `training/accelerate` has a file of settings for each but `single`.
STRATEGIES = ("single", "ddp", "fsdp2", "zero2", "zero3")
SHARDED_MODELS = ("fsdp1", "fsdp2", "zero3")  # strategies under which no process has a whole student


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
            Precision of the student's weights. With `lora` or `quantization`, trained weights are float32 and only the
            finished model has this precision.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the language model or the tokenizer. A student with such a language
            model can be loaded only where the classes of that code are registered with transformers.
        lora (`dict`, *optional*):
            Fields of PEFT's `LoraConfig`: the language model's weights are frozen, and the part `language_model` in
            `trainable` means the adapters of this LoRA. `target_modules` are layers of the language model; all of its
            linear layers if not given, without the head.
        quantization (`str`, *optional*):
            `4bit` or `8bit`: precision of the language model's linear layers during training, which are frozen. The
            finished model is made from the original weights.
        merge (`bool`, *optional*, defaults to `True`):
            Whether the finished stage is one model with the LoRA merged into its weights, or a PEFT folder next to
            its base.

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
    lora: dict | None = None
    quantization: str | None = None
    merge: bool = True

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        if self.quantization is not None:
            check_choice("quantization", self.quantization, QUANTIZATIONS)
        if not self.merge and self.lora is None:
            raise UserError("merge is false, but there is no lora to keep apart; leave it out, or add lora.")
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
    def has_frozen_base(self) -> bool:
        """Whether the weights of the language model are frozen and never saved in a checkpoint."""
        return self.lora is not None or self.quantization is not None

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
            Data file, or another source as in [`Source`]. An encoder without a language model is trained on the images
            it names; if not given, on all images under `image_folder`, except hidden files and linked folders.
        image_folder (`str`):
            Folder, zip or tar that image paths are relative to. A data set may contain its images instead.
        data (`list[dict]`, *optional*):
            Several sources instead of a `data_path`, each a mapping of the fields of [`Source`]. `image_folder` is
            that of the sources that name none.
        chat_template (`str`, *optional*):
            `plain`, `vicuna_v1` or a `.jinja` file; the tokenizer's if not given. A template for text only, as
            language models have, is adapted to images.
        image_aspect_ratio (`str`, *optional*, defaults to `"pad"`):
            How an image is made square: `pad` or `crop`. Tiles do not depend on it.
        image_grid_pinpoints (`list[list[int]]`, *optional*):
            Heights and widths of the grids of tiles that an image can be cut into, in pixels, as in LLaVA-NeXT:
            multiples of the encoder's image size. An empty list makes each image one square. If not given, the student
            keeps what it starts with: the tiles of the stage before it or of a LLaVA-NeXT, otherwise one square.
        distill_tiles (`bool`, *optional*, defaults to `True`):
            Whether the teachers see every tile of an image, or only the whole image as one square.
        max_length (`int`, *optional*, defaults to 2048):
            Maximum number of tokens of a sample; unused when an encoder is trained alone.
        packing (`bool`, *optional*, defaults to `False`):
            Whether the samples of a batch are one sequence without padding. A language model that would mix them is
            refused, see [`check_packing`].
        max_batch_tokens (`int`, *optional*):
            Maximum number of tokens of a batch on one device, padding included, instead of a number of samples
            (`per_device_train_batch_size`). Samples of similar lengths are in one batch, with images or without.
        max_batch_tiles (`int`, *optional*):
            Maximum number of tiles of a batch on one device: the encoder's and the teachers' memory depends on them.
            Samples of similar lengths are in one batch, as with `max_batch_tokens`.
        bad_records (`str`, *optional*, defaults to `"error"`):
            `error` or `skip`, see [`RecordDataset`]; applies to training data only.
        image_share (`float`, *optional*, defaults to 1.0):
            Share of the images to train on, see [`choose_share`]: the same images in every stage and run, and a subset
            of any larger share.
        follow_links (`bool`, *optional*, defaults to `True`):
            Whether a record's image may be a symbolic link or in a linked folder.
        teacher_cache (`str`, *optional*):
            Folder of features that `hawaii cache` computed; the teachers are then neither loaded nor run.
        eval_data_path (`str`, *optional*):
            Data file of questions, one per record, for evaluation during training; transformers' `eval_strategy`,
            `eval_steps` and `per_device_eval_batch_size` apply. Only useful in a stage that trains on answers:
            captions in the plain template have no end token.
    """

    data_path: str | None = None
    image_folder: str = ""
    data: list[dict] | None = None
    chat_template: str | None = None
    image_aspect_ratio: str = "pad"
    image_grid_pinpoints: list | None = None
    distill_tiles: bool = True
    max_length: int = 2048
    packing: bool = False
    max_batch_tokens: int | None = None
    max_batch_tiles: int | None = None
    bad_records: str = "error"
    image_share: float = 1.0
    follow_links: bool = True
    teacher_cache: str | None = None
    eval_data_path: str | None = None

    def __post_init__(self):
        if self.max_batch_tokens is not None and self.max_batch_tokens < self.max_length:
            raise UserError(
                f"max_batch_tokens is {self.max_batch_tokens}, but a sample may have {self.max_length} tokens "
                "(max_length) and must fit into a batch; make max_batch_tokens larger, or max_length smaller."
            )
        check_choice("image_aspect_ratio", self.image_aspect_ratio, IMAGE_ASPECT_RATIOS)
        check_choice("bad_records", self.bad_records, ("error", "skip"))
        if self.data is not None and self.data_path:
            raise UserError(
                f"data_path is {self.data_path!r}, and data names sources, too; move it to data as "
                f"{{path: {self.data_path}}}."
            )
        if self.data is not None and not self.data:
            raise UserError("data is an empty list; name one or more sources, or a data_path.")
        if not self.image_folder and (not (self.data_path or self.data) or self.eval_data_path):
            raise UserError("there is no image_folder; name the folder that image paths are relative to.")
        weighted = [source for source in self.sources if source.weight is not None]
        if len(weighted) not in (0, len(self.sources)) or (
            self.is_streaming and len(self.sources) > len(weighted) + 1
        ):
            raise UserError(
                "data: only some sources have a weight; give every source one, or none, to use every record once per "
                "epoch. Streamed sources have no epoch, so they need weights."
            )

        if self.max_batch_tiles is not None and self.max_batch_tiles < 1:
            raise UserError(f"max_batch_tiles is {self.max_batch_tiles}; it must be 1 or more.")
        for name in ("max_batch_tokens", "max_batch_tiles"):
            if getattr(self, name) is not None and self.is_streaming:
                raise UserError(
                    f"{name} is given and data is streamed, but the sizes of all samples must be known before: leave "
                    "out one of them."
                )
        if self.teacher_cache is not None and self.is_streaming:
            raise UserError(
                "teacher_cache is given and data is streamed, but a cache holds the features of all images: leave out "
                "one of them."
            )

    @property
    def sources(self) -> list[Source]:
        """The sources of the training data; none if an encoder is trained on all images under `image_folder`."""
        if self.data is None:
            return [Source(self.data_path, self.image_folder or None)] if self.data_path else []
        return [self._parse_source(number, given) for number, given in enumerate(self.data)]

    @property
    def weights(self) -> list[float] | None:
        """The weight of each source; `None` if every record of all is used once per epoch."""
        weights = [source.weight for source in self.sources]
        return None if None in weights or not weights else weights

    @property
    def record_options(self) -> dict[str, Any]:
        """Options of [`RecordDataset`] that decide which records and images are used."""
        return {name: getattr(self, name) for name in ("bad_records", "image_share", "follow_links")}

    @property
    def is_streaming(self) -> bool:
        """Whether any source is streamed."""
        return any(source.streaming for source in self.sources)

    def _parse_source(self, number: int, given: Any) -> Source:
        location = f"data[{number}]"
        if not isinstance(given, dict):
            raise UserError(
                f"{location} is {given!r}; it must be a mapping, as in {{path: FILE, image_folder: FOLDER}}."
            )
        location = f"{location} ({given.get('path', 'without path')})"
        types: dict[str, Any] = {option.name: option.type for option in fields(Source)}
        check_names(location, "key", given, types)
        values = {key: convert_option(location, key, value, types[key]) for key, value in given.items()}
        try:
            return Source(**{"path": "", "image_folder": self.image_folder or None, **values})
        except UserError as error:
            raise UserError(f"{location}: {error}") from error


@dataclass
class HawaiiTrainingArguments(TrainingArguments):
    """
    transformers' training arguments and the choice of the objective, whose own options are [`ObjectiveOptions`].

    Args:
        objective (`str`, *optional*, defaults to `"hawaii"`):
            `hawaii`, or one of the baselines `llava` (without teachers), `move_kd` and `radio`.
        teachers (`str` or `list`, *optional*):
            One of the paper's sets (`hawaii`), a preset, or a list of presets, checkpoints and mappings, see
            [`expand_teachers`].
        trainable (`list[str]`, *optional*):
            Parts to train: `vision_tower`, `adapters`, `routers`, `projector`, `language_model`, and `projections`,
            the objective's projections of the teachers' features; all if not given. With `lora`, `language_model` is
            its LoRA alone. The heads of `objective: radio` learn in any case. Trainable projections can collapse the
            targets to a constant, which is easy to match.
        learning_rates (`dict[str, float]`, *optional*):
            Learning rate of single parts, by their names in `trainable`; `learning_rate` for all others. The schedule
            scales all by the same factor.
        strategy (`str`, *optional*):
            How the run must be distributed: `single`, `ddp`, `fsdp2`, `zero2` or `zero3`. The launcher decides; a run
            that has another strategy is refused before it loads a model.
        num_processes (`int`, *optional*):
            The number of processes that the run must have, over all machines.
        shard_teachers (`bool`, *optional*, defaults to `False`):
            Whether each process keeps only a part of the teachers' weights. Each teacher is gathered for its pass,
            with every strategy; otherwise every process has whole teachers.
    """

    objective: str = field(default="hawaii")
    teachers: list[dict] | str | None = field(default=None)
    trainable: list[str] | None = field(default=None)
    learning_rates: dict[str, float] | None = field(default=None)
    strategy: str | None = field(default=None)
    num_processes: int | None = field(default=None)
    shard_teachers: bool = field(default=False)

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective", self.objective, tuple(OBJECTIVES))
        if self.strategy is not None:
            check_choice("strategy", self.strategy, STRATEGIES)
        self.trainable = list(TRAINABLE_PARTS) if self.trainable is None else self.trainable
        for part in self.trainable:
            check_choice("trainable", part, TRAINABLE_PARTS)
        if not self.trainable:
            raise UserError(
                f"trainable is empty, so the stage would train nothing: name one or more of "
                f"{', '.join(TRAINABLE_PARTS)}, or leave it out to train all."
            )
        # Every run stops at signals, see [`StopCallback`], which replaces transformers' callback.
        self.enable_jit_checkpoint = False
        self.learning_rates = self._check_learning_rates(self.learning_rates or {})
        # The objective needs complete batches.
        self.remove_unused_columns = False
        # Otherwise a resumed run would report only the seconds since the resume.
        self.restore_callback_states_from_checkpoint = True
        # A loss that is not finite stops training (see [`check_step`]); this would log zero instead, and synchronise
        # with the device in each micro-batch.
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
        if self.ignore_data_skip:
            raise UserError("ignore_data_skip is true, but then a resume trains on other samples: leave it out.")
        if self.save_only_model:
            raise UserError(
                "save_only_model is true, but training cannot continue from a checkpoint without the state of the "
                "optimizer: leave it out. For fewer bytes, set save_total_limit, or save_strategy to no."
            )
        if self.save_strategy == SaveStrategy.STEPS and not self.save_steps:
            raise UserError("save_steps is 0; it must be above 0, or save_strategy no.")
        if self.save_strategy == SaveStrategy.BEST:
            raise UserError("save_strategy is 'best', but no checkpoint is chosen; it must be steps, epoch or no.")
        if self.use_liger_kernel:
            raise UserError(
                "use_liger_kernel is true, but its kernels replace layers of a model that transformers trains alone, "
                "not of a student with an objective: leave it out."
            )
        backends = [backend.lower() for backend in DynamoBackend.__members__]
        if self.torch_compile_backend is not None:
            check_choice("torch_compile_backend", self.torch_compile_backend.lower(), tuple(backends))
        if self.push_to_hub or self.load_best_model_at_end:
            raise UserError(
                "push_to_hub and load_best_model_at_end are not supported: publish the finished folder with "
                "`hawaii publish`, and choose among the checkpoints yourself."
            )

    def _check_learning_rates(self, rates: dict) -> dict[str, float]:
        for part, rate in rates.items():
            check_choice("a part of learning_rates", part, TRAINABLE_PARTS)
            # A projection that only weights targets learns in every stage.
            if part not in [*(self.trainable or []), "projections"]:
                raise UserError(
                    f"learning_rates has a rate for {part}, but trainable is {self.trainable!r}: leave {part} out of "
                    "learning_rates, or add it to trainable."
                )
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < float("inf"):
                raise UserError(
                    f"The learning rate of {part} in learning_rates is {rate!r}; it must be a number that is at least "
                    "0, such as 2.0e-5."
                )
        return {part: float(rate) for part, rate in rates.items()}

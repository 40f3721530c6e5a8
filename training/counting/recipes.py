"""What a recipe would train, counted on the meta device: no weight is read and nothing is trained."""

from collections import Counter

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ...configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
from ...files.markdown_table import markdown_table
from ...modeling_hawaii.conversion.clip import make_vision_config
from ...modeling_hawaii.conversion.llava_checkpoint import read_llava
from ...modeling_hawaii.conversion.vocabulary import VOCABULARY_MULTIPLE
from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..objectives.encoder_passes import Student
from ..recipes.arguments import HawaiiTrainingArguments, ModelArguments
from ..recipes.objectives import OBJECTIVES
from ..recipes.recipe import parse_stage, read_recipe
from ..students.encoders import continue_config
from ..students.student import vision_fields
from ..students.tokenizer import load_tokenizer
from ..students.trainable import part_of, set_trainable
from ..teachers.presets import expand_teachers
from ..teachers.teacher import Teacher
from .architectures import ARCHITECTURES, read_architecture
from .teachers import count_parameters, outline


ENCODER_PARTS = ("vision_tower", "adapters", "routers")
LANGUAGE_MODEL_PARTS = ("projector", "language_model")


def _outline_vision(model_args: ModelArguments, fields: dict) -> HawaiiVisionConfig:
    if model_args.llava is not None:
        llava = read_llava(model_args.llava, vision_tower=None)
        return make_vision_config(llava.vision_config, llava.vision_feature_layer, fields)
    if model_args.vision_tower is None:
        return HawaiiVisionConfig(**fields)
    encoder = read_architecture(model_args.vision_tower)
    if isinstance(encoder, HawaiiVisionConfig):
        return continue_config(encoder, model_args.vision_tower, model_args.vision_config or {}, fields)
    return make_vision_config(getattr(encoder, "vision_config", encoder), -2, fields)  # where `convert_clip` ends


def _outline_text(model_args: ModelArguments) -> PretrainedConfig:
    if model_args.text_config is not None:
        fields = {**model_args.text_config, "vocab_size": len(load_tokenizer(model_args))}
        return AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)
    if model_args.llava is not None:
        config = read_llava(model_args.llava, vision_tower=None).text_config
    else:
        config = read_architecture(model_args.language_model)
    # Of what is known here, tokens fill the vocabulary, and the image's is one more.
    is_known = model_args.language_model in ARCHITECTURES
    num_tokens = config.vocab_size + 1 if is_known else len(load_tokenizer(model_args))
    if num_tokens > config.vocab_size:
        config.vocab_size = -(-num_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return config


def outline_student(model_args: ModelArguments, num_teachers: int, objective: str = "hawaii") -> Student:
    """
    The student of a recipe on the meta device: all but its weights.

    Args:
        model_args (`ModelArguments`):
            Names the encoder and the language model, or the encoder alone. Of those that this package knows nothing is
            downloaded, of others their configuration and the tokenizer.
        num_teachers (`int`):
            How many there are.
        objective (`str`, *optional*, defaults to `"hawaii"`):
            Decides which adapters there are, where the recipe does not.
    """
    vision_config = _outline_vision(model_args, vision_fields(model_args, num_teachers, objective))
    with torch.device("meta"):
        if model_args.is_encoder_alone:
            return HawaiiVisionModel(vision_config)
        language_model = AutoModelForCausalLM.from_config(_outline_text(model_args))
        config = HawaiiConfig(
            vision_config=vision_config,
            text_config=language_model.config,
            head_bias=language_model.get_output_embeddings().bias is not None,
        )
        return HawaiiForConditionalGeneration(config)


def _students_table(counts: Counter, num_projections: int, stages: dict[str, HawaiiTrainingArguments]) -> str:
    def learns(part: str, args: HawaiiTrainingArguments) -> bool:
        if part == "projections":
            return OBJECTIVES[args.objective].projections_learn(args.trainable)
        return part in args.trainable

    def row(part: str, count: int) -> list[str]:
        return [part, f"{count:,}", *("learns" if learns(part, args) else "" for args in stages.values())]

    parts = [*ENCODER_PARTS, *(part for part in LANGUAGE_MODEL_PARTS if counts[part])]
    rows = [row(part, counts[part]) for part in parts]
    rows.append(["the student", f"{counts.total():,}", *("" for _ in stages)])
    rows.append(row("projections", num_projections))
    return markdown_table(["part", "parameters", *stages], rows)


def _teachers_table(teachers: list[Teacher]) -> str:
    def row(teacher: Teacher) -> list[str]:
        height, width, channels = teacher.grid
        side = teacher.image_size
        shape = [f"{side} x {side}", f"{height} x {width}", str(channels)]
        return [teacher.name, f"{count_parameters(teacher.model):,}", *shape]

    return markdown_table(
        ["teacher", "parameters", "input", "grid", "channels"], [row(teacher) for teacher in teachers]
    )


def describe_recipe(recipe: str, overrides: list[str] | None = None) -> str:
    """
    Counts the parameters of a recipe: the student's, part by part, and in which stage each learns; those of the
    projections that only training needs; and each teacher's.

    Args:
        recipe (`str`):
            The YAML file.
        overrides (`list[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`.

    Returns:
        `str`: two Markdown tables; one, where the objective has no teachers.
    """
    # Whatever accelerators this machine has: none is used.
    stages = {
        name: parse_stage({**options, "use_cpu": True}, name)
        for name, options in read_recipe(recipe, overrides).items()
    }
    model_args, _, args = next(iter(stages.values()))
    kind = OBJECTIVES[args.objective]
    configs = expand_teachers(args.teachers) if kind.uses_teachers else []
    teachers = kind.prepare_teachers([outline(config) for config in configs])
    student = outline_student(model_args, len(teachers), args.objective)
    with torch.device("meta"):
        objective = kind(args, student, {teacher.name: teacher.grid for teacher in teachers})
    counts = Counter()
    for name, parameter in student.named_parameters():
        counts[part_of(name)] += parameter.numel()
    for _, _, training in stages.values():
        set_trainable(student, training.trainable)
    arguments = {name: training for name, (_, _, training) in stages.items()}
    students = _students_table(counts, count_parameters(objective), arguments)
    return "\n\n".join([students, kind.note, *([_teachers_table(teachers)] if teachers else [])])

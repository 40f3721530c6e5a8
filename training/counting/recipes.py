"""Parameters and costs of a recipe on the meta device: no weights are loaded and nothing is trained."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ...configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
from ...files.markdown_table import markdown_table
from ...files.user_error import UserError, explain_errors
from ...modeling_hawaii.conversion.clip import make_vision_config
from ...modeling_hawaii.conversion.llava_checkpoint import read_llava
from ...modeling_hawaii.conversion.vocabulary import VOCABULARY_MULTIPLE
from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..baselines.class_token_teacher import ClassTokenTeacher
from ..objectives.encoder_passes import Student
from ..recipes.arguments import SHARDED_MODELS, ModelArguments
from ..recipes.objectives import OBJECTIVES, StudentWithObjective
from ..recipes.recipe import Recipe, Stage, read_recipe
from ..students.encoders import continue_config
from ..students.frozen_base import freeze_base, prepare_trained
from ..students.language_models import read_config, register_code
from ..students.processor import find_pinpoints
from ..students.student import set_tiles, vision_fields
from ..students.tokenizer import load_tokenizer
from ..students.trainable import part_of, set_trainable
from ..teachers.teacher import Teacher
from .architectures import NUM_TOKENS, known_architecture, read_architecture
from .cost_tables import describe_costs
from .costs import StageCost, count_stage
from .machine import Machine
from .teachers import count_parameters, outline


ENCODER_PARTS = ("vision_tower", "adapters", "routers")
LANGUAGE_MODEL_PARTS = ("projector", "language_model")


def outline_vision(model_args: ModelArguments, fields: dict) -> HawaiiVisionConfig:
    """Returns the configuration of a recipe's encoder, without its weights; `fields` as from [`vision_fields`]."""
    if model_args.llava is not None:
        llava = read_llava(model_args.llava, vision_tower=None)
        return make_vision_config(llava.vision_config, llava.vision_feature_layer, fields)
    if model_args.vision_tower is None:
        return HawaiiVisionConfig(**fields)
    encoder = read_architecture(model_args.vision_tower)
    if isinstance(encoder, HawaiiVisionConfig):
        return continue_config(encoder, model_args.vision_tower, model_args.vision_config or {}, fields)
    return make_vision_config(getattr(encoder, "vision_config", encoder), -2, fields)  # the layer of `convert_clip`


def _outline_text(model_args: ModelArguments) -> PretrainedConfig:
    if model_args.text_config is not None:
        fields = {**model_args.text_config, "vocab_size": len(load_tokenizer(model_args))}
        return AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)
    if model_args.llava is not None:
        config = read_llava(model_args.llava, vision_tower=None).text_config
    else:
        known = known_architecture(model_args.language_model)
        if known is None and model_args.trust_remote_code:
            register_code(model_args.language_model)
        config = known or read_config(model_args.language_model)
    known_tokens = NUM_TOKENS.get(model_args.language_model)  # without the image token
    num_tokens = len(load_tokenizer(model_args)) if known_tokens is None else known_tokens + 1
    if num_tokens > config.vocab_size:
        config.vocab_size = -(-num_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return config


def outline_student(model_args: ModelArguments, num_teachers: int, objective: str = "hawaii") -> Student:
    """
    Builds the student of a recipe on the meta device, without weights.

    Args:
        model_args (`ModelArguments`):
            Names the encoder and the language model, or the encoder alone. Nothing is downloaded for models in
            [`ARCHITECTURES`]; for others, the configuration and the tokenizer are.
        num_teachers (`int`):
            Number of teachers.
        objective (`str`, *optional*, defaults to `"hawaii"`):
            Sets the adapters, unless the recipe sets them.

    Raises:
        UserError: no student can have these sizes, or a configuration cannot be read.
    """
    fields = vision_fields(model_args, num_teachers, objective)
    # Wrong sizes raise errors of every type in transformers and in the model, such as a ZeroDivisionError.
    with torch.device("meta"), explain_errors("The student of the recipe cannot be built"):
        vision_config = outline_vision(model_args, fields)
        if model_args.is_encoder_alone:
            return HawaiiVisionModel(vision_config)
        language_model = AutoModelForCausalLM.from_config(_outline_text(model_args))
        config = HawaiiConfig(
            vision_config=vision_config,
            text_config=language_model.config,
            head_bias=language_model.get_output_embeddings().bias is not None,
        )
        return HawaiiForConditionalGeneration(config)


def outline_stage(
    module: StudentWithObjective, stage: Stage, image_grid_pinpoints: list[list[int]] | None = None
) -> StudentWithObjective:
    """
    Returns the module as a stage trains it, with the precision, the tiles, the frozen parts and the LoRA of the stage.
    Without a LoRA and without quantization, it is the given module.

    Args:
        module (`StudentWithObjective`):
            Outline on the meta device.
        stage (`Stage`):
            Stage of a recipe.
        image_grid_pinpoints (`list[list[int]]`, *optional*):
            Its grids of tiles, see [`find_pinpoints`]; one square per image if not given.

    Raises:
        UserError: PEFT refuses the LoRA, or the pinpoints are not multiples of the encoder's image size.
    """
    trainable: Any = stage.training.trainable
    student: Any = module.student
    objective: Any = module.objective
    if not isinstance(student, HawaiiVisionModel):
        with explain_errors(f"Stage {stage.name}"):
            set_tiles(student, image_grid_pinpoints)
    student.to(getattr(torch, stage.model.dtype))
    set_trainable(student, trainable)
    objective.set_trainable(trainable)
    objective.options = stage.options
    if not stage.model.has_frozen_base:
        return module
    module = copy.deepcopy(module)
    with torch.device("meta"):
        freeze_base(module.student, trainable)
        prepare_trained(module.student, stage.model)
    return module


def _count_language_model(module: StudentWithObjective) -> int:
    """Counts the trainable parameters of the language model."""
    student: Any = module.student
    return sum(weight.numel() for weight in student.model.language_model.parameters() if weight.requires_grad)


def _students_table(counts: Counter, num_projections: int, loras: dict[str, int], stages: dict[str, Stage]) -> str:
    def is_trained(part: str, stage: Stage) -> bool:
        trainable = stage.training.trainable
        if part == "language_model" and stage.model.lora is not None:
            return False
        if part == "projections":
            return OBJECTIVES[stage.training.objective].projections_learn(trainable)
        return part in trainable

    def row(part: str, count: int) -> list[str]:
        return [part, f"{count:,}", *("learns" if is_trained(part, stage) else "" for stage in stages.values())]

    parts = [*ENCODER_PARTS, *(part for part in LANGUAGE_MODEL_PARTS if counts[part])]
    rows = [row(part, counts[part]) for part in parts]
    rows.append(["the student", f"{counts.total():,}", *("" for _ in stages)])
    for name, count in loras.items():
        rows.append([f"LoRA of {name}", f"{count:,}", *("learns" if name == other else "" for other in stages)])
    rows.append(row("projections", num_projections))
    return markdown_table(["part", "parameters", *stages], rows)


def _teachers_table(teachers: Sequence[Teacher | ClassTokenTeacher]) -> str:
    rows = []
    for teacher in teachers:
        side, (height, width, channels) = teacher.image_size, teacher.grid
        shape = [f"{side} x {side}", f"{height} x {width}", str(channels)]
        rows.append([teacher.name, f"{count_parameters(teacher.model):,}", *shape])
    return markdown_table(["teacher", "parameters", "input", "grid", "channels"], rows)


def _describe_demands(stages: dict[str, Stage], machine: Machine) -> list[str]:
    """A sentence for each stage that demands other devices than those counted: such a run would be refused."""
    counted = {"num_processes": machine.devices, "strategy": machine.strategy or "single"}
    sentences = []
    for name, stage in stages.items():
        demands = {key: getattr(stage.training, key) for key in counted}
        different = [key for key, value in demands.items() if value not in (None, counted[key])]
        if different:
            demanded, found = (
                ", ".join(f"{key}: {values[key]}" for key in different) for values in (demands, counted)
            )
            sentences.append(
                f"Stage {name} demands {demanded}, but the costs are those of {found}: training on these devices "
                "would be refused. Count others, or remove the demand from the recipe."
            )
    return sentences


@dataclass
class OutlinedRecipe:
    """
    A recipe on the meta device.

    Args:
        stages (`dict[str, Stage]`):
            The stages.
        pinpoints (`dict[str, list[list[int]] | None]`):
            The grids of tiles of each stage.
        teachers (`Sequence[Teacher | ClassTokenTeacher]`):
            Outlines, as the objective prepares them.
        module (`StudentWithObjective`):
            Outline of all that the stages train.
    """

    stages: dict[str, Stage]
    pinpoints: dict[str, list[list[int]] | None]
    teachers: Sequence[Teacher | ClassTokenTeacher]
    module: StudentWithObjective

    @classmethod
    def of(cls, plan: Recipe) -> "OutlinedRecipe":
        """
        Outlines a recipe.

        Raises:
            UserError: no student can have these sizes, or a configuration cannot be read.
        """
        first = next(iter(plan.stages.values()))
        name = first.training.objective
        objective_class = OBJECTIVES[name]
        teachers = objective_class.prepare_teachers([outline(config) for config in first.distilled_teachers])
        student = outline_student(first.model, len(teachers), name)
        with torch.device("meta"):
            objective = objective_class(first.options, student, {teacher.name: teacher.grid for teacher in teachers})
        return cls(plan.stages, find_pinpoints(plan), teachers, StudentWithObjective(student, objective))

    def outline_stages(self) -> Iterator[tuple[str, StudentWithObjective]]:
        """Yields the name of each stage and the module as the stage trains it, valid until the next iteration."""
        for name, stage in self.stages.items():
            yield name, outline_stage(self.module, stage, self.pinpoints[name])

    def count(self, machine: Machine, tokens: int | None = None) -> list[StageCost]:
        """
        Counts the costs of each stage on a machine; `tokens` as for [`count_stage`].

        Raises:
            RuntimeError: sizes in the model depend on data.
        """
        return [
            count_stage(self.stages[name], module, self.teachers, machine, tokens)
            for name, module in self.outline_stages()
        ]


def describe_recipe(
    recipe: str,
    overrides: Sequence[str] | None = None,
    devices: int | None = None,
    strategy: str | None = None,
    gpu: str = "H100",
    mfu: float = 0.4,
    tokens: int | None = None,
) -> str:
    """
    Counts the parameters of each part of the student, with the stages that train it, of each stage's LoRA, of the
    objective's projections and of each teacher; and the memory, operations, steps, bytes and hours of each stage.

    Args:
        recipe (`str`):
            A YAML file, or the name of a built-in recipe.
        overrides (`Sequence[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`.
        devices, strategy, gpu, mfu:
            As for [`Machine`]; devices and strategy are those of the recipe if not given.
        tokens (`int`, *optional*):
            Mean number of positions of a sample, including its image; that of the data if not given.

    Returns:
        `str`: Markdown tables and sentences.

    Raises:
        UserError: the recipe or an option cannot be used.
    """
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens is {tokens}; it must be 1 or more.")
    plan = read_recipe(recipe, overrides, use_cpu=True)
    stages = plan.stages
    first = next(iter(stages.values()))
    demanded = None if first.training.strategy == "single" else first.training.strategy
    devices = first.training.num_processes or 1 if devices is None else devices
    machine = Machine(devices, strategy or demanded, gpu, mfu)
    for stage in stages.values():
        if stage.model.quantization is not None and machine.strategy in SHARDED_MODELS:
            raise UserError(
                f"quantization {stage.model.quantization} is for models that are not sharded (one process, DDP or "
                f"ZeRO-2), but the strategy is {machine.strategy}."
            )
    recipe_outline = OutlinedRecipe.of(plan)
    module, teachers = recipe_outline.module, recipe_outline.teachers
    loras = {
        name: _count_language_model(outlined)
        for name, outlined in recipe_outline.outline_stages()
        if stages[name].model.lora is not None
    }
    counts = Counter()  # of the finished student: only tiles need a newline
    for name, parameter in module.student.named_parameters():
        counts[part_of(name)] += parameter.numel()
    objective: Any = module.objective
    students = _students_table(counts, count_parameters(objective), loras, stages)
    try:
        costs = describe_costs(recipe_outline.count(machine, tokens))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        costs = f"Memory and operations are not known, because sizes in the language model depend on its data: {error}"
    tables = [_teachers_table(teachers)] if teachers else []
    demands = _describe_demands(stages, machine)
    return "\n\n".join([students, objective.note, *tables, costs, *demands])

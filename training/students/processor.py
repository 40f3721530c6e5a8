"""The student's processor: tokenizer, chat template and image processor."""

from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.user_error import UserError, explain_errors
from ...modeling_hawaii.conversion.llava_checkpoint import read_llava
from ...processing.chat_templates import adapt_chat_template, load_chat_template
from ...processing.encoder_processor import kernel_and_colors, load_image_processor
from ...processing.image_processing_hawaii import HawaiiImageProcessor
from ...processing.processing_hawaii import HawaiiProcessor
from ..recipes.arguments import DataArguments, ModelArguments
from ..recipes.recipe import Recipe
from .tokenizer import default_chat_template, load_tokenizer


def square_image_processor(original, vision_config: HawaiiVisionConfig) -> CLIPImageProcessorPil:
    """Creates an image processor for the encoder's size with `original`'s resampling filter and normalisation."""
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    return CLIPImageProcessorPil(size=size, crop_size=size, **kernel_and_colors(original))


def tile_image_processor(
    original, vision_config: HawaiiVisionConfig, image_grid_pinpoints: list[list[int]] | None
) -> HawaiiImageProcessor:
    """
    Creates an image processor that cuts images into tiles of the encoder's size, or without `image_grid_pinpoints`
    makes squares of them, with `original`'s resampling filter and normalisation.

    Raises:
        ValueError: a grid's sides are not multiples of the encoder's size.
    """
    square = square_image_processor(original, vision_config)
    return HawaiiImageProcessor.from_dict({**square.to_dict(), "image_grid_pinpoints": image_grid_pinpoints})


def find_pinpoints(recipe: Recipe) -> dict[str, list[list[int]] | None]:
    """
    Finds the grids of tiles of each stage by its name: its own, otherwise those of the stage before it, or of a
    LLaVA-NeXT for the first one; `None` for one square per image.
    """
    first = next(iter(recipe.stages.values())).model
    pinpoints = None if first.llava is None else read_llava(first.llava, vision_tower=None).image_grid_pinpoints
    found = {}
    for name, stage in recipe.stages.items():
        own = stage.data.image_grid_pinpoints
        found[name] = pinpoints = pinpoints if own is None else own or None
    return found


def adapt_processor(
    processor: HawaiiProcessor, model_args: ModelArguments, data_args: DataArguments
) -> HawaiiProcessor:
    """
    Sets the chat template, the `image_aspect_ratio` and the tiles of a stage.

    Raises:
        UserError: there is no such template, it does not render images and text (see [`adapt_chat_template`]), or the
            sizes of tiles are not multiples of the encoder's.
    """
    processor.image_aspect_ratio = data_args.image_aspect_ratio
    if data_args.image_grid_pinpoints is not None:
        with explain_errors():
            processor.image_grid_pinpoints = data_args.image_grid_pinpoints or None
    if data_args.chat_template is not None:
        template = load_chat_template(data_args.chat_template)
    else:
        # The tokenizer of a saved stage has that stage's template; only the recipe's has the original one.
        template = default_chat_template(load_tokenizer(model_args))
    if template is None:
        raise UserError("The tokenizer has no chat template. Name one with chat_template, such as vicuna_v1.")
    processor.chat_template = adapt_chat_template(template, **processor.tokenizer.special_tokens_map)
    processor.tokenizer.chat_template = processor.chat_template  # replaces all others, which would be saved as well
    return processor


def image_source(model_args: ModelArguments) -> str | None:
    """Returns the checkpoint with the image processor that a student's is made from; `None` for CLIP's default."""
    if model_args.llava is None:
        return model_args.vision_tower
    # A LLaVA in its original format names the encoder's checkpoint, which has the image processor.
    return read_llava(model_args.llava, vision_tower=None).vision_tower or model_args.llava


def build_processor(
    model_args: ModelArguments,
    data_args: DataArguments,
    vision_config: HawaiiVisionConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_grid_pinpoints: list[list[int]] | None = None,
) -> HawaiiProcessor:
    """
    Creates a new student's processor. Images are normalised as for the checkpoint that the encoder starts from, and
    cut into the tiles of a LLaVA-NeXT (`image_grid_pinpoints`) unless the stage has others.
    """
    original = load_image_processor(image_source(model_args))
    processor = HawaiiProcessor(
        image_processor=tile_image_processor(original, vision_config, image_grid_pinpoints),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
    )
    return adapt_processor(processor, model_args, data_args)

"""Options of a teacher in a recipe."""

import math
from dataclasses import dataclass, fields

from ...configuration.configuration_hawaii import check_choice
from ...files.user_error import UserError, explain_errors


DTYPES = ("float32", "bfloat16", "float16")
RESAMPLES = ("bicubic", "bilinear")
# Log entries have these names: the variances of the student and of the coarse-grained target.
RESERVED_NAMES = ("student", "coarse")


def _is_color(value) -> bool:
    is_sequence = isinstance(value, list | tuple) and len(value) == 3
    return is_sequence and all(type(item) in (int, float) and math.isfinite(item) for item in value)


@dataclass
class TeacherConfig:
    """
    Options of a teacher. The checkpoint's configuration and image processor define those that are not given.

    Args:
        checkpoint (`str`):
            Folder or hub id of a vision model of transformers or timm.
        name (`str`, *optional*):
            Name of its losses in the log; the last part of `checkpoint` if not given.
        image_size (`int`, *optional*):
            Side of its input, in pixels.
        image_mean, image_std (`list[float]`, *optional*):
            Its normalisation. Pix2Struct accepts none, because it normalises each image by itself.
        resample (`str`, *optional*):
            Filter that resizes the image that all teachers share: `bicubic` or `bilinear`.
        layer (`int`, *optional*):
            Index of its `hidden_states` (0 is the input of the first layer), for models of timm of a block or stage,
            for a backbone of a feature map. The last, after the final norm if there is one, if not given.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Precision of its weights and activations.
    """

    checkpoint: str
    name: str | None = None
    image_size: int | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    resample: str | None = None
    layer: int | None = None
    dtype: str = "float32"

    def __post_init__(self):
        if not isinstance(self.checkpoint, str) or not self.checkpoint:
            raise UserError(
                f"The checkpoint of a teacher is {self.checkpoint!r}; it must be the folder or hub id of a model."
            )
        if self.name is None:
            self.name = self.checkpoint.rstrip("/").rpartition("/")[2]
        if not isinstance(self.name, str) or not self.name or self.name in RESERVED_NAMES:
            raise UserError(
                f"The name of teacher {self.checkpoint} is {self.name!r}; it must be text and none of the names that "
                f"the log uses ({', '.join(RESERVED_NAMES)}). Set its name."
            )
        for field in ("image_size", "layer"):
            value = getattr(self, field)
            if value is not None and type(value) is not int:
                raise UserError(f"The {field} of teacher {self.name} is {value!r}; it must be a whole number.")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"The image_size of teacher {self.name} is {self.image_size}; it must be 1 or more.")
        for field in ("image_mean", "image_std"):
            value = getattr(self, field)
            if value is not None and not _is_color(value):
                raise UserError(f"The {field} of teacher {self.name} is {value!r}; it must be a list of 3 numbers.")
        if self.image_std is not None and min(self.image_std) <= 0:
            raise UserError(f"The image_std of teacher {self.name} is {self.image_std}; each must be more than 0.")
        with explain_errors():
            if self.resample is not None:
                check_choice(f"The resample of teacher {self.name}", self.resample, RESAMPLES)
            check_choice(f"The dtype of teacher {self.name}", self.dtype, DTYPES)

    @classmethod
    def parse(cls, value: str | dict) -> "TeacherConfig":
        """Parses an item of a recipe: a checkpoint, or a mapping of the fields above."""
        known = [field.name for field in fields(cls)]
        if not isinstance(value, str | dict):
            raise UserError(f"A teacher is {value!r}; it must be a checkpoint or a mapping of {', '.join(known)}.")
        values = {"checkpoint": value} if isinstance(value, str) else value
        unknown = [name for name in values if name not in known]
        if unknown or "checkpoint" not in values:
            problem = f"has no field {unknown[0]!r}" if unknown else "needs a checkpoint"
            raise UserError(f"A teacher {problem}: {value}. Its fields are {', '.join(known)}.")
        return cls(**values)

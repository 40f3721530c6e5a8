"""What a recipe says of one teacher."""

import math
from dataclasses import dataclass, fields

from ...configuration.configuration_hawaii import check_choice
from ...files.user_error import UserError


DTYPES = ("float32", "bfloat16", "float16")
RESAMPLES = ("bicubic", "bilinear")
# The variances of the student and of the coarse-grained target are logged by these names.
TAKEN_NAMES = ("student", "coarse")


def _is_color(value) -> bool:
    are_numbers = isinstance(value, list | tuple) and all(type(item) in (int, float) for item in value)
    return are_numbers and len(value) == 3 and all(math.isfinite(item) for item in value)


@dataclass
class TeacherConfig:
    """
    A teacher in a recipe.

    Args:
        checkpoint (`str`):
            Folder or hub id of a vision model that transformers or timm loads.
        name (`str`, *optional*):
            What its losses are logged as; the last part of `checkpoint` if not given.
        image_size (`int`, *optional*):
            Side of the image it is shown, in pixels; its own configuration's or image processor's if not given.
        image_mean, image_std (`list[float]`, *optional*):
            Its normalisation; its own image processor's if not given. Pix2Struct has its own and takes none.
        resample (`str`, *optional*):
            How the image that all teachers share is brought to its size: `bicubic` or `bilinear`; its own image
            processor's if not given.
        layer (`int`, *optional*):
            Which of its `hidden_states` is taught, where 0 is what goes into the first layer; of a model that timm
            loads which of its blocks or stages, of a backbone which of its feature maps. The last, after its last norm
            where it has one, if not given.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Precision it runs in.
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
        if not isinstance(self.name, str) or not self.name or self.name in TAKEN_NAMES:
            raise UserError(
                f"The name of teacher {self.checkpoint} is {self.name!r}; it must be text that the log does not use "
                f"already ({', '.join(TAKEN_NAMES)}). Give it one (fields checkpoint, name)."
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
        if self.resample is not None:
            check_choice(f"The resample of teacher {self.checkpoint}", self.resample, RESAMPLES)
        check_choice(f"The dtype of teacher {self.checkpoint}", self.dtype, DTYPES)

    @classmethod
    def parse(cls, value: str | dict) -> "TeacherConfig":
        """A teacher of a recipe: a checkpoint alone, or the fields above."""
        known = [field.name for field in fields(cls)]
        if not isinstance(value, str | dict):
            raise UserError(f"A teacher is {value!r}; it must be a checkpoint or a mapping of {', '.join(known)}.")
        values = {"checkpoint": value} if isinstance(value, str) else value
        unknown = [name for name in values if name not in known]
        if unknown or "checkpoint" not in values:
            problem = f"has no field {unknown[0]!r}" if unknown else "needs a checkpoint"
            raise UserError(f"A teacher {problem}: {value}. Its fields are {', '.join(known)}.")
        return cls(**values)

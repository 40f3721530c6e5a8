"""The devices that a stage runs on."""

from dataclasses import dataclass

from ...files.user_error import UserError
from .gpus import GPUS
from .memory import STRATEGIES


@dataclass(frozen=True)
class Machine:
    """
    The devices that a stage runs on.

    Args:
        devices (`int`, *optional*, defaults to 1):
            Number of devices.
        strategy (`str`, *optional*):
            One of `STRATEGIES`; `ddp` on several devices if not given.
        gpu (`str`, *optional*, defaults to `"H100"`):
            One of `GPUS`.
        mfu (`float`, *optional*, defaults to 0.4):
            Share of the GPU's peak that the step reaches, without recomputation.

    Raises:
        UserError: a value is not allowed.
    """

    devices: int = 1
    strategy: str | None = None
    gpu: str = "H100"
    mfu: float = 0.4

    def __post_init__(self):
        if self.devices < 1:
            raise UserError(f"--devices is {self.devices}; it must be 1 or more.")
        if self.strategy not in (None, *STRATEGIES):
            raise UserError(f"--strategy is {self.strategy!r}; it must be one of {', '.join(STRATEGIES)}.")
        if self.gpu not in GPUS:
            raise UserError(f"--gpu is {self.gpu!r}; it must be one of {', '.join(GPUS)}.")
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu is {self.mfu}; it must be above 0 and at most 1.")
        if self.strategy in ("ddp", "fsdp2") and self.devices == 1:
            raise UserError(
                f"The strategy is {self.strategy}, which is for several devices, but one is counted: set --devices to "
                "2 or more, or choose another strategy."
            )
        if self.strategy is None and self.devices > 1:
            object.__setattr__(self, "strategy", "ddp")

    def __str__(self) -> str:
        if self.strategy is None:
            return f"one {self.gpu}"
        return f"{self.devices} x {self.gpu} with {self.strategy}"

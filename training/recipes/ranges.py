"""The numbers that an option may have."""

from collections.abc import Callable
from math import inf

from ...files.user_error import UserError


Range = tuple[str, Callable[[float], bool]]  # in words, and as a condition that NaN never meets

AT_LEAST_0: Range = ("a finite number that is at least 0", lambda value: 0 <= value < inf)
AT_LEAST_1: Range = ("at least 1", lambda value: 1 <= value < inf)
ABOVE_0: Range = ("a finite number above 0", lambda value: 0 < value < inf)
BELOW_1: Range = ("at least 0 and below 1", lambda value: 0 <= value < 1)
SHARE: Range = ("above 0 and at most 1", lambda value: 0 < value <= 1)
SEED: Range = ("at least 0 and below 2**32", lambda value: 0 <= value < 2**32)
NUM_STEPS: Range = ("at least 1, or -1 for num_train_epochs", lambda value: value == -1 or value >= 1)

RANGES: dict[str, Range] = {
    # The length of training and its batches.
    "max_steps": NUM_STEPS,
    "num_train_epochs": ABOVE_0,
    "per_device_train_batch_size": AT_LEAST_1,
    "per_device_eval_batch_size": AT_LEAST_1,
    "gradient_accumulation_steps": AT_LEAST_1,
    "max_length": AT_LEAST_1,
    "max_batch_tokens": AT_LEAST_1,
    "image_share": SHARE,
    "seed": SEED,
    "data_seed": SEED,
    # The optimizer. A rate of 0 is useful where single parts have a rate in learning_rates.
    "learning_rate": AT_LEAST_0,
    "warmup_steps": AT_LEAST_0,
    "weight_decay": AT_LEAST_0,
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_epsilon": AT_LEAST_0,
    "max_grad_norm": AT_LEAST_0,  # 0 does not clip
    "neftune_noise_alpha": AT_LEAST_0,
    # The terms of the loss: a negative weight would maximise a term.
    "lambda_1": AT_LEAST_0,
    "lambda_2": AT_LEAST_0,
    # The intervals; below 1, a share of all steps. transformers refuses 0 where it would be used.
    "logging_steps": AT_LEAST_0,
    "save_steps": AT_LEAST_0,
    "eval_steps": AT_LEAST_0,
    "eval_delay": AT_LEAST_0,
    # The processes and their data loaders.
    "num_processes": AT_LEAST_1,
    "dataloader_num_workers": AT_LEAST_0,
    "dataloader_prefetch_factor": AT_LEAST_1,
    "eval_accumulation_steps": AT_LEAST_1,
    "torch_empty_cache_steps": AT_LEAST_1,
    "ddp_bucket_cap_mb": AT_LEAST_1,
    "ddp_timeout": AT_LEAST_1,
    # PEFT's fields of a LoRA.
    "r": AT_LEAST_1,
    "lora_alpha": ABOVE_0,
    "lora_dropout": BELOW_1,
}


def check_range(location: str, name: str, value: object) -> None:
    """Raises a `UserError` if the value of an option is a number that it cannot have; `None` is not given."""
    if name not in RANGES or not isinstance(value, int | float):
        return
    words, is_allowed = RANGES[name]
    if not is_allowed(value):
        raise UserError(f"{location}: {name} is {value!r}; it must be {words}.")

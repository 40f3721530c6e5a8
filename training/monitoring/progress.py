"""The progress bar: remaining time and the terms of the loss."""

from tqdm import tqdm
from transformers.trainer_callback import ProgressCallback


# Log entries that are not terms of the loss.
OTHER_ENTRIES = ("step", "epoch", "grad_norm", "time", "teacher_share", "flops_per_second", "mfu", "total_flos")
OTHER_PREFIXES = ("variance/", "load/", "load_entropy/", "eval_", "train_", "learning_rate", "weight/")


def is_loss_term(name: str) -> bool:
    """Whether a log entry is the loss or one of its terms."""
    return name not in OTHER_ENTRIES and not name.startswith(OTHER_PREFIXES) and not name.endswith("_per_second")


class ProgressBar(ProgressCallback):
    """transformers' bar with the terms of the loss; a resumed run estimates the remaining time from its own steps."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is not None and logs and "loss" in logs:
            terms = {name: f"{value:.4g}" for name, value in logs.items() if is_loss_term(name)}
            self.training_bar.set_postfix(terms, refresh=False)

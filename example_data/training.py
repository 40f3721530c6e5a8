"""Training with the Trainer of transformers that keeps nothing but the trained model."""

from collections.abc import Callable
from tempfile import TemporaryDirectory

from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments


def measure_accuracy(results: EvalPrediction) -> dict[str, float]:
    """Returns the share of correct predictions among the labels that are not negative; 0 if there are none."""
    is_known = results.label_ids >= 0
    num_correct = ((results.predictions == results.label_ids) & is_known).sum()
    return {"accuracy": float(num_correct / max(1, is_known.sum()))}


def train(
    model: nn.Module,
    learned: Dataset,
    held_out: Dataset,
    num_steps: int,
    settings: dict,
    predict: Callable,
    data_collator: Callable | None = None,
) -> float:
    """
    Trains a model, on a GPU if there is one, and measures it. On a CPU the same call gives the same weights.

    Args:
        model (`nn.Module`):
            Returns a dictionary with `loss` and `logits`. In eval mode and on the CPU afterwards.
        learned, held_out (`torch.utils.data.Dataset`):
            Samples to train on, and samples for the accuracy, both with `labels`.
        num_steps (`int`):
            Number of steps.
        settings (`dict`):
            Further `TrainingArguments`, `seed` among them.
        predict (`Callable`):
            Maps `logits` and `labels` to the predicted labels, in the shape of `labels`.
        data_collator (`Callable`, *optional*):
            As for `Trainer`.

    Returns:
        `float`: share of the labels of `held_out`, except negative ones, that are predicted; 0 if there are none.
    """
    with TemporaryDirectory() as scratch:
        args = TrainingArguments(
            output_dir=scratch,
            max_steps=num_steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            per_device_eval_batch_size=64,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            **settings,
        )
        args._n_gpu = min(1, args.n_gpu)  # nn.DataParallel would multiply the batch size by the number of GPUs.
        trainer = Trainer(
            model,
            args,
            data_collator,
            train_dataset=learned,
            compute_metrics=measure_accuracy,
            preprocess_logits_for_metrics=predict,
        )
        trainer.train()
        accuracy = trainer.evaluate(held_out)["eval_accuracy"] if len(held_out) else 0.0
    model.eval().cpu()
    return accuracy

"""transformers' Trainer with teachers outside the model."""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files.run_contents import ZERO_STATE_FILES
from .answers import answer_questions, evaluation_mode, load_questions, score_answers
from .callbacks import TimerCallback
from .checkpoints import (
    check_state_files,
)
from .data.batches import GroupedBatchSampler, too_few_samples
from .data.reader import TEACHER_INPUTS
from .data.sample_stream import SampleStream, load_stream
from .distribution.finite_checks import check_step, check_weights, gradient_norms
from .distribution.zero_steps import CheckedEngine, bad_gradient_norms
from .learning_rates import split_groups
from .monitoring.hardware import HardwareCallback
from .monitoring.monitor import Monitor
from .monitoring.progress import ProgressBar
from .objectives.objective import select_distilled
from .recipes.objectives import StudentWithObjective
from .saving import SavingTrainer
from .stop_requests import StopCallback, StopRequests
from .students.frozen_base import FrozenBase
from .teachers.teacher import Teacher


logger = logging.getLogger(__name__)

# A target has collapsed to a constant if its variance is smaller than this fraction of the student's. Targets start
# with variance one or are normalised, so a large scale of the student's features alone does not reach this ratio.
COLLAPSE_RATIO = 1e-3


def teacher_features(teachers: list, batch: dict) -> list:
    """Removes the teachers' inputs from a batch and returns the features of each teacher."""
    inputs = [batch.pop(name) for name in TEACHER_INPUTS if name in batch]
    return [teacher(*inputs) for teacher in teachers]


class HawaiiTrainer(SavingTrainer):
    """
    Trains a student and its objective's projections against frozen teachers.

    Args:
        model (`StudentWithObjective`):
            The trained modules.
        teachers (`list[Teacher]` or `list[CachedTeacher]`):
            Teachers as the objective prepares them, in its order.
        base (`FrozenBase`, *optional*):
            Frozen weights of a student with a LoRA or a quantized language model: checkpoints contain only trained
            weights.
        max_batch_tokens (`int`, *optional*), max_batch_tiles (`int`, *optional*):
            As in [`DataArguments`].
        eval_dataset (`QuestionDataset`, *optional*):
            Questions for evaluations during training, as often as `eval_strategy` sets.
        identity (`dict`, *optional*):
            Identity of the run for the manifests, see [`describe_stage`].
        stop_requests (`StopRequests`, *optional*):
            Signals that stop training.
        kwargs:
            As for [`~transformers.Trainer`].

    Raises:
        UserError: there are questions or quantized weights, but the model is sharded.
    """

    def __init__(
        self,
        model: StudentWithObjective,
        teachers: list[Teacher],
        base: FrozenBase | None = None,
        max_batch_tokens: int | None = None,
        max_batch_tiles: int | None = None,
        identity: dict[str, Any] | None = None,
        stop_requests: StopRequests | None = None,
        **kwargs,
    ):
        super().__init__(model, base, identity, **kwargs)
        self.add_callback(TimerCallback())
        self.add_callback(HardwareCallback())
        self.stop_requests = stop_requests or StopRequests()
        self.stop_callback = StopCallback(self.stop_requests)
        self.add_callback(self.stop_callback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressBar())
        self.teachers = teachers
        self.monitor = Monitor(model, teachers, self.accelerator)
        self.max_batch_tokens, self.max_batch_tiles = max_batch_tokens, max_batch_tiles
        self._batch_sampler: GroupedBatchSampler | None = None
        # The loss is divided by the counts of the whole step, not by the number of micro-batches.
        self.model_accepts_loss_kwargs = True
        self._terms: dict[str, torch.Tensor] = {}
        self._num_steps = 0  # over which the terms are summed
        # Of the micro-batches of the current step.
        self._step_terms: list[dict[str, torch.Tensor]] = []
        self._step_records: list[list[str]] = []
        self._warned_of_collapse: set[str] = set()
        self._group_parts: list[str | None] = []  # of the optimizer's groups, with `learning_rates`
        self._logged_rates: dict[str, float] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.monitor.expect(inputs, self.timer.seconds)
        with self.monitor.timed_teachers():
            features = teacher_features(self.teachers, inputs)
        loss, terms = model(features, inputs)
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0) + value
        losses = {name: value for name, value in terms.items() if not name.startswith("variance/")}
        self._step_terms.append({**losses, "loss": loss.detach()})
        # Gradients are averaged over processes, but the terms are shares whose sum over processes is the loss.
        loss = loss * self.accelerator.num_processes
        return (loss, terms) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Also checks the whole step after its last micro-batch, before gradients are clipped."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and not self.is_deepspeed_enabled:
            self._check_step(gradient_norms(self._module))
        return loss

    def _check_step(self, norms: dict[str, torch.Tensor]) -> None:
        check_step(self.state.global_step + 1, self._step_terms, norms, self._step_records, self.accelerator)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.is_deepspeed_enabled and resume_from_checkpoint is not None:
            step = Path(resume_from_checkpoint).name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
            check_state_files(resume_from_checkpoint, [f"global_step{step}", *ZERO_STATE_FILES])
            self._check_base(resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.is_deepspeed_enabled:  # it steps inside the last backward pass, so the check must be there
            engine = self.deepspeed
            self.accelerator.deepspeed_engine_wrapped = CheckedEngine(
                engine, lambda: self._check_step(bad_gradient_norms(self._module, engine))
            )
        return prepared

    def create_optimizer(self, model=None):
        """Makes a separate optimizer group for each part in `learning_rates`."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self.args.learning_rates and is_new:
            module = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
            self._group_parts = split_groups(optimizer, module, self.args.learning_rates)
        return optimizer

    def _get_learning_rate(self) -> float:
        """
        Also stores the rate of each part: the scheduler has changed the rates before the log entry of a step is
        written.
        """
        optimizer: Any = self.optimizer
        rates = zip(self._group_parts, (group["lr"] for group in optimizer.param_groups if self._group_parts))
        self._logged_rates = {f"learning_rate/{part}": float(rate) for part, rate in rates if part is not None}
        return super()._get_learning_rate()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """
        Adds to each micro-batch the counts of label tokens and of the teachers' images in the whole step, over all
        processes, and removes the ids of its records.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed from the last checkpoint: the loop would take another step
        batches, num_label_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._num_steps += 1
            self._step_terms, self._step_records = [], [batch.pop("record_ids") for batch in batches]
            distilled = [select_distilled(batch, batch["image_index"]) for batch in batches]
            num_squares = torch.stack([(index >= 0).sum() for index in distilled]).sum().to(device)
            if self.accelerator.num_processes > 1:
                num_squares = self.accelerator.reduce(num_squares, "sum")
            if num_label_tokens is None:  # images alone; without a count transformers would average micro-batches
                num_label_tokens = torch.zeros_like(num_squares)
            for batch in batches:
                batch["num_label_tokens"] = num_label_tokens
                batch["num_squares"] = num_squares
        return batches, num_label_tokens

    def log(self, logs, start_time=None):
        """Adds the mean of each term of the loss since the last log entry."""
        if "loss" in logs and self._terms:
            values = torch.stack([value.float() for value in self._terms.values()])
            values = (self.accelerator.reduce(values, "sum") / self._num_steps).tolist()
            terms = dict(zip(self._terms, values))
            self._warn_of_collapse(terms)
            logs = {**logs, **{name: float(f"{value:.4g}") for name, value in terms.items()}}
            self._terms, self._num_steps = {}, 0
            logs |= self.monitor.summarize(self.timer.seconds)
        if "learning_rate" in logs:
            logs = {**logs, **self._logged_rates}
        super().log(logs, start_time)

    def _warn_of_collapse(self, terms: dict[str, float]) -> None:
        for name, variance in terms.items():
            is_target = name.startswith("variance/") and name != "variance/student"
            has_collapsed = is_target and variance < COLLAPSE_RATIO * terms["variance/student"]
            if has_collapsed and name not in self._warned_of_collapse:
                self._warned_of_collapse.add(name)
                logger.warning(
                    "The target %s has collapsed: its variance is %.2g, the student's is %.2g, so its loss contains "
                    "no information.",
                    name.removeprefix("variance/"),
                    variance,
                    terms["variance/student"],
                )

    @property
    def timer(self) -> TimerCallback:
        # Not an attribute: a resume replaces the callback.
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, TimerCallback))

    @property
    def sessions(self) -> list[dict]:
        """Where each part of the training ran, see [`HardwareCallback`]."""
        callbacks = self.callback_handler.callbacks
        return next(callback.sessions for callback in callbacks if isinstance(callback, HardwareCallback))

    def get_train_dataloader(self) -> DataLoader:
        """
        Returns this process's batches. Its workers ignore signals to the whole run. A stream bypasses accelerate,
        which would read it on one process for all.

        Raises:
            UserError: there are fewer samples than a batch for each process, and `dataloader_drop_last` is set.
        """
        dataset, args = self.train_dataset, self.args
        if not isinstance(dataset, SampleStream):
            loader = self.stop_requests.protect_workers(super().get_train_dataloader())
            if not len(loader):
                raise too_few_samples(len(dataset), self.accelerator.num_processes)
            return loader
        loader = load_stream(
            dataset,
            self._train_batch_size,
            self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.stop_requests.protect_workers(loader)

    def _init_training_state(self, *args, **kwargs):
        """Also sets the number of batches that a stream skips: the training loop drops them on a resume."""
        epochs, num_batches = super()._init_training_state(*args, **kwargs)
        if isinstance(self.train_dataset, SampleStream):
            self.train_dataset.num_skipped = num_batches
        return epochs, num_batches

    def _get_train_sampler(self, train_dataset=None):
        """Samplers that need the sizes of all samples get them without reading the pixels of an image."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        processor: Any = self.processing_class
        if self._has_bound or self.args.train_sampling_strategy == "group_by_length":
            lengths, num_tiles = dataset.measure()
            is_skipping = dataset.bad_records == "skip"
            self._batch_sampler = GroupedBatchSampler(
                lengths,
                num_tiles,
                self.args.train_batch_size,
                self.max_batch_tokens,
                self.max_batch_tiles,
                num_processes=self.accelerator.num_processes,
                process_index=self.accelerator.process_index,
                accumulation=self.args.gradient_accumulation_steps,
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                drop_last=self.args.dataloader_drop_last,
                # A sample without tokens cannot be read.
                indices=[index for index, length in enumerate(lengths) if length or not is_skipping],
            )
            return self._batch_sampler
        if self.args.train_sampling_strategy == "batch_rebalance":
            name = processor.model_input_names[0]
            dataset = [{name: range(length)} for length in dataset.lengths()]
        return super()._get_train_sampler(dataset)

    def _run_epoch(self, *args, epoch, **kwargs):
        # transformers and accelerate do not find the sampler if there are several processes or if batches are skipped.
        if self._batch_sampler is not None:
            self._batch_sampler.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    @property
    def _has_bound(self) -> bool:
        """Whether batches have different numbers of samples."""
        return self.max_batch_tokens is not None or self.max_batch_tiles is not None

    @property
    def samples_per_step(self) -> int:
        """Samples of an optimizer step over all processes; the mean if batches are bounded by tokens or tiles."""
        if not self._has_bound or self._batch_sampler is None:
            return self.get_total_train_batch_size(self.args)
        batches = self.accelerator.num_processes * self.args.gradient_accumulation_steps
        return max(1, round(len(self.train_dataset) / self._batch_sampler.num_batches * batches))

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Returns this process's share of the questions, in batches. Its workers ignore signals to the whole run."""
        loader = load_questions(
            self.eval_dataset if eval_dataset is None else eval_dataset,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        return self.stop_requests.protect_workers(loader)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """
        Lets the student answer the questions of a [`QuestionDataset`], and logs the accuracy and the seconds of
        training so far. It does not affect training.
        """
        check_weights(self.state.global_step, self._module, self.accelerator)
        if self.stop_callback.has_stopped:  # the answers may take longer than the time until the job ends
            self._save_checkpoint(self.model, None)
        questions = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = self.get_eval_dataloader(questions)
        # The progress bar reads its length; transformers declares it as `None`.
        self.callback_handler.eval_dataloader = loader  # pyright: ignore[reportAttributeAccessIssue]
        student = self._module.student
        answers = {}
        with self.timer.paused(), evaluation_mode(student), self.accelerator.autocast():
            for numbers, inputs in loader:
                answers |= zip(numbers, answer_questions(student, self._prepare_input(inputs), questions))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            answers = dict(gather_object(list(answers.items())))
            scores = score_answers(answers, questions)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        metrics["train_seconds"] = round(self.timer.seconds, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

"""transformers' Trainer with teachers next to the model, and with checkpoints that are never incomplete."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from ..files.atomic import replace_folder, write_json
from ..files.manifest import read_identity, write_manifest
from ..files.run_contents import SHARDED_STATE_FILES, STAGE_FILE, ZERO_STATE_FILES
from ..files.user_error import UserError
from ..files.write_errors import describe_write_error
from .answers import answer_questions, evaluation_mode, load_questions, score_answers
from .callbacks import TimerCallback
from .checkpoints import (
    check_state_files,
    list_checkpoints,
    load_checkpoint,
    remove_old_checkpoints,
    save_objective,
)
from .data.batches import GroupedBatchSampler
from .data.records import TEACHER_INPUTS
from .data.sample_stream import SampleStream, load_stream
from .finished_stage import ObjectiveSettings, save_settings
from .finite_checks import check_step, check_weights, gradient_norms
from .learning_rates import split_groups
from .monitoring.monitor import Monitor
from .monitoring.progress import ProgressBar
from .objectives.encoder_passes import Student
from .recipes.arguments import HawaiiTrainingArguments
from .recipes.objectives import StudentWithObjective
from .stop_requests import StopCallback, StopRequests, protect_workers
from .students.frozen_base import FrozenBase
from .teachers.teacher import Teacher
from .zero_steps import CheckedEngine, bad_gradient_norms


logger = logging.getLogger(__name__)

# A target whose variance is smaller than this fraction of the student's is the same everywhere. Targets from layers
# start with variance one, or are normalised, so the scale of a student's features alone does not reach this ratio.
COLLAPSE_RATIO = 1e-3


def _child_state(state_dict: dict | None, child: str) -> dict | None:
    """Returns the part of a gathered state that belongs to a child of the module; `None` if nothing was gathered."""
    if state_dict is None:
        return None
    return {
        name.removeprefix(f"{child}."): value for name, value in state_dict.items() if name.startswith(f"{child}.")
    }


def teacher_features(teachers: list, batch: dict) -> list:
    """Removes from a batch what the teachers receive, and returns each one's features."""
    inputs = [batch.pop(name) for name in TEACHER_INPUTS if name in batch]
    return [teacher(*inputs) for teacher in teachers]


class HawaiiTrainer(Trainer):
    """
    Trains a student and its objective's projections against frozen teachers.

    Args:
        model (`StudentWithObjective`):
            The modules that train.
        teachers (`list[Teacher]` or `list[CachedTeacher]`):
            Teachers as the objective prepares them, in its order.
        base (`FrozenBase`, *optional*):
            Frozen weights of the student under a LoRA or in few bits: checkpoints hold only what trains.
        max_batch_tokens (`int`, *optional*):
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

    args: HawaiiTrainingArguments

    def __init__(
        self,
        model: StudentWithObjective,
        teachers: list[Teacher],
        base: FrozenBase | None = None,
        max_batch_tokens: int | None = None,
        identity: dict[str, Any] | None = None,
        stop_requests: StopRequests | None = None,
        **kwargs,
    ):
        super().__init__(model=model, **kwargs)
        self.base = base
        self.add_callback(TimerCallback())
        self.stop_callback = StopCallback(stop_requests or StopRequests())
        self.add_callback(self.stop_callback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressBar())
        self.teachers = teachers
        self.monitor = Monitor(model, teachers, self.accelerator)
        self.identity = {
            "world_size": self.args.world_size,
            **(identity or {}),
            "samples": len(self.train_dataset) if has_length(self.train_dataset) else None,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        self.max_batch_tokens = max_batch_tokens
        self._batch_sampler: GroupedBatchSampler | None = None
        # The loss is divided by the counts of the whole step, not by the number of micro-batches.
        self.model_accepts_loss_kwargs = True
        self._terms: dict[str, torch.Tensor] = {}
        self._num_steps = 0  # over which the terms are summed
        # Of the micro-batches of the current step.
        self._step_terms: list[dict[str, torch.Tensor]] = []
        self._step_records: list[list[str]] = []
        self._save_folder: Path | None = None
        self._write_errors: list[Exception] = []
        self._warned_of_collapse: set[str] = set()
        self._group_parts: list[str | None] = []  # of the optimizer's groups, with `learning_rates`
        self._logged_rates: dict[str, float] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        features = teacher_features(self.teachers, inputs)
        self.monitor.expect(inputs, self.timer.seconds)
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
        """Gives the parts in `learning_rates` groups of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self.args.learning_rates and is_new:
            module = self.accelerator.unwrap_model(self.model if model is None else model, keep_torch_compile=False)
            self._group_parts = split_groups(optimizer, module, self.args.learning_rates)
        return optimizer

    def _get_learning_rate(self) -> float:
        """Also keeps the rate of each part: a log entry has those of its step, and the scheduler is ahead of it."""
        optimizer: Any = self.optimizer
        rates = zip(self._group_parts, (group["lr"] for group in optimizer.param_groups if self._group_parts))
        self._logged_rates = {f"learning_rate/{part}": float(rate) for part, rate in rates if part is not None}
        return super()._get_learning_rate()

    @property
    def _module(self) -> StudentWithObjective:
        """The module that trains, without what wraps it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def student(self) -> Student:
        """The model that trains, without what wraps it."""
        return self._module.student

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """
        Adds to each micro-batch the counts of label tokens and images in the whole step, over all processes, and takes
        the ids of its records out.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed from the last checkpoint: the loop would take another step
        batches, num_label_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._num_steps += 1
            self._step_terms, self._step_records = [], [batch.pop("record_ids") for batch in batches]
            num_images = torch.stack([(batch["image_index"] >= 0).sum() for batch in batches]).sum().to(device)
            if self.accelerator.num_processes > 1:
                num_images = self.accelerator.reduce(num_images, "sum")
            if num_label_tokens is None:  # images alone; without a count transformers would average micro-batches
                num_label_tokens = torch.zeros_like(num_images)
            for batch in batches:
                batch["num_label_tokens"] = num_label_tokens
                batch["num_images"] = num_images
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
                    "The target %s has collapsed: its variance is %.2g, the student's is %.2g, so its loss teaches "
                    "nothing.",
                    name.removeprefix("variance/"),
                    variance,
                    terms["variance/student"],
                )

    @property
    def timer(self) -> TimerCallback:
        # Not an attribute: a resume replaces the callback.
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, TimerCallback))

    def get_train_dataloader(self) -> DataLoader:
        """
        Returns this process's batches, from workers that a signal to the whole run does not end. Accelerate would let
        one process read a stream for all.
        """
        dataset, args = self.train_dataset, self.args
        if not isinstance(dataset, SampleStream):
            return protect_workers(super().get_train_dataloader())
        loader = load_stream(
            dataset,
            self._train_batch_size,
            self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return protect_workers(loader)

    def _init_training_state(self, *args, **kwargs):
        """Also lets a stream know how many batches it need not make: the loop takes them and drops them."""
        epochs, num_batches = super()._init_training_state(*args, **kwargs)
        if isinstance(self.train_dataset, SampleStream):
            self.train_dataset.num_skipped = num_batches
        return epochs, num_batches

    def _get_train_sampler(self, train_dataset=None):
        """Samplers that need the lengths of all samples get them without reading an image."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        processor: Any = self.processing_class
        if self.max_batch_tokens is not None or self.args.train_sampling_strategy == "group_by_length":
            lengths, has_images = dataset.measure()
            is_skipping = dataset.bad_records == "skip"
            self._batch_sampler = GroupedBatchSampler(
                lengths,
                has_images,
                self.args.train_batch_size,
                self.max_batch_tokens,
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
        # transformers and accelerate do not find the sampler if other processes have batches, or some are skipped.
        if self._batch_sampler is not None:
            self._batch_sampler.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Returns this process's share of the questions, in batches."""
        return load_questions(
            self.eval_dataset if eval_dataset is None else eval_dataset,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

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

    def _get_output_dir(self, trial):
        return str(self._save_folder) if self._save_folder is not None else super()._get_output_dir(trial)

    @contextmanager
    def _noting_write_errors(self) -> Iterator[None]:
        """Notes an error of the file system. If it were raised, the other processes would wait for this one."""
        try:
            yield
        except Exception as error:
            if describe_write_error(error, Path(self.args.output_dir)) is None:
                raise
            self._write_errors.append(error)

    def _raise_write_errors(self, folder: Path) -> None:
        """Raises the first noted error on all processes as one sentence that names the folder to write."""
        errors, self._write_errors = self._write_errors, []
        problems = gather_object([describe_write_error(error, folder) for error in errors[:1]])
        if not problems:
            return
        kept = [path for path in list_checkpoints(self.args.output_dir) if path != folder]
        remains = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise UserError(f"{problems[0]}; {remains}: make room and run the same command again.") from (
            errors or [None]
        )[0]

    def _save_checkpoint(self, model, trial):
        """Writes the checkpoint into a temporary folder and renames it when every process is done."""
        check_weights(self.state.global_step, self._module, self.accelerator)
        run_folder = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._save_folder = run_folder / "incomplete"
        try:
            if self.args.should_save:
                shutil.rmtree(self._save_folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            with self._noting_write_errors():
                super()._save_checkpoint(model, trial)
            self._raise_write_errors(run_folder / name)
            if self.args.should_save:
                with self._noting_write_errors():
                    write_manifest(self._save_folder / name, {**self.identity, "step": self.state.global_step})
                    replace_folder(self._save_folder / name, run_folder / name)
            self._raise_write_errors(run_folder / name)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._save_folder, ignore_errors=True)
            self._save_folder = None
        if self.args.should_save:
            remove_old_checkpoints(run_folder, self.args.save_total_limit, self.state.global_step)

    def _save_optimizer_and_scheduler(self, output_dir):
        with self._noting_write_errors():
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir):
        with self._noting_write_errors():
            super()._save_rng_state(output_dir)

    def save_model(self, output_dir=None, _internal_call=False):
        """
        Saves the whole model; under FSDP, transformers saves none if checkpoints are in shards, the default, and under
        DeepSpeed it takes an error of saving for one of gathering.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            wrapped = self.deepspeed if self.is_deepspeed_enabled else self.model
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(wrapped))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        """Saves the student as a folder that anyone can load, with the objective in a separate file."""
        if not self.args.should_save:
            return
        module = self._module
        folder = Path(output_dir or self.args.output_dir)
        student, objective = (_child_state(state_dict, name) for name in ("student", "objective"))
        if student is not None:  # gathering makes copies of weights that are one
            student = {
                name: value for name, value in student.items() if name not in module.student.all_tied_weights_keys
            }
        is_checkpoint = self._save_folder is not None
        with self._noting_write_errors():
            folder.mkdir(parents=True, exist_ok=True)
            if self.base is None:
                # Checkpoints use the module's names, so that a resume finds every weight. Finished models use the
                # names of the language model's published checkpoints, which transformers 4.57 reads as well.
                module.student.save_pretrained(folder, state_dict=student, save_original_format=not is_checkpoint)
            else:
                weights = dict(module.student.named_parameters()) if student is None else student
                if is_checkpoint:
                    self.base.save_trained(folder, weights)
                else:
                    self.base.save_finished(folder, Path(self.args.output_dir), weights, self.processing_class)
            save_objective(module.objective, folder, objective)
            self.processing_class.save_pretrained(folder)

    def save_whole(self, final: Path, report: dict, settings: ObjectiveSettings) -> None:
        """
        Saves a finished stage: student, objective, its settings and the report, in a folder that appears when it is
        complete.
        """
        check_weights(self.state.global_step, self._module, self.accelerator)
        incomplete = final.with_name(f"{final.name}.incomplete")
        try:
            if self.args.should_save:
                shutil.rmtree(incomplete, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self.save_model(str(incomplete))
            self._raise_write_errors(final)
            if self.args.should_save:
                if not any(incomplete.glob("*model*.safetensors")):
                    raise UserError(f"{incomplete} has no weights, so the stage is not finished.")
                with self._noting_write_errors():
                    write_json(incomplete / STAGE_FILE, report)
                    save_settings(settings, incomplete)
                    write_manifest(incomplete, {**self.identity, "step": self.state.global_step})
                    replace_folder(incomplete, final)
            self._raise_write_errors(final)
        finally:
            if self.args.should_save:
                shutil.rmtree(incomplete, ignore_errors=True)
        if self.args.should_save:
            # A run that was killed after its last checkpoint saves no other.
            remove_old_checkpoints(self.args.output_dir, self.args.save_total_limit, self.state.global_step)

    def _load_rng_state(self, checkpoint):
        """As transformers'. Another number of processes draws new random numbers for dropout, the same in each."""
        if read_identity(checkpoint)["world_size"] == self.args.world_size:
            super()._load_rng_state(checkpoint)
        else:
            set_seed(self.args.seed + self.state.global_step)

    def _check_base(self, checkpoint: str) -> None:
        """Refuses other frozen weights than those that a sharded checkpoint was trained with."""
        if self.base is not None:
            self.base.load_trained(Path(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.is_fsdp_enabled:
            form = self.accelerator.state.fsdp_plugin.state_dict_type.name
            if form not in SHARDED_STATE_FILES:
                raise UserError(
                    f"fsdp_state_dict_type is {form}; training resumes from {' or '.join(SHARDED_STATE_FILES)} only."
                )
            check_state_files(resume_from_checkpoint, SHARDED_STATE_FILES[form])
            self._check_base(resume_from_checkpoint)
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            module = self.accelerator.unwrap_model(model or self.model)
            load_checkpoint(module, resume_from_checkpoint, self.base)

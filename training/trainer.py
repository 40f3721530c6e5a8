"""transformers' Trainer with teachers next to the model, and with checkpoints that are never incomplete."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files.atomic import replace_folder, write_json
from ..files.run_contents import SHARDED_STATE_FILES, STAGE_FILE
from ..files.user_error import UserError
from .answers import answer_questions, evaluation_mode, load_questions, score_answers
from .callbacks import SigtermCallback, TimerCallback
from .checkpoints import (
    check_random_states,
    check_state_files,
    load_checkpoint,
    remove_old_checkpoints,
    save_objective,
)
from .finished_stage import ObjectiveSettings, save_settings
from .finite_checks import check_step, check_weights, gradient_norms
from .monitoring.monitor import Monitor
from .monitoring.progress import ProgressBar
from .recipes.arguments import HawaiiTrainingArguments
from .recipes.objectives import StudentWithObjective
from .teachers.teacher import Teacher


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


class HawaiiTrainer(Trainer):
    """
    Trains a student and its objective's projections against frozen teachers.

    Args:
        model (`StudentWithObjective`):
            The modules that train.
        teachers (`list[Teacher]`):
            Teachers as the objective prepares them, in its order.
        eval_dataset (`QuestionDataset`, *optional*):
            Questions for evaluations during training, as often as `eval_strategy` sets.
        kwargs:
            As for [`~transformers.Trainer`].

    Raises:
        UserError: there are questions, but the model is sharded.
    """

    args: HawaiiTrainingArguments

    def __init__(self, model: StudentWithObjective, teachers: list[Teacher], **kwargs):
        super().__init__(model=model, **kwargs)
        self.add_callback(TimerCallback())
        replaced = self.pop_callback(JITCheckpointCallback)
        if replaced is not None:
            replaced.on_train_end(self.args, self.state, self.control)  # restores the handler of SIGTERM
            self.add_callback(SigtermCallback(self.accelerator))
        if self.eval_dataset is not None and (self.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
            raise UserError(
                "A sharded model (FSDP, ZeRO-3) cannot answer questions during training: leave out eval_data_path and "
                "eval_strategy, and evaluate its checkpoints with `hawaii evaluate`."
            )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressBar())
        self.teachers = teachers
        self.monitor = Monitor(model, teachers, self.accelerator)
        # The loss is divided by the counts of the whole step, not by the number of micro-batches.
        self.model_accepts_loss_kwargs = True
        self._terms: dict[str, torch.Tensor] = {}
        self._num_steps = 0  # over which the terms are summed
        # Of the micro-batches of the current step.
        self._step_terms: list[dict[str, torch.Tensor]] = []
        self._step_records: list[list[str]] = []
        self._save_folder: Path | None = None
        self._warned_of_collapse: set[str] = set()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        teacher_images = inputs.pop("teacher_images", None)
        features = [teacher(teacher_images) for teacher in self.teachers]
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
        if self.accelerator.sync_gradients:
            norms = gradient_norms(self._module)
            check_step(self.state.global_step + 1, self._step_terms, norms, self._step_records, self.accelerator)
        return loss

    @property
    def _module(self) -> StudentWithObjective:
        """The module that trains, without what wraps it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

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

    def _get_train_sampler(self, train_dataset=None):
        """Samplers that need the lengths of all samples get them without reading an image."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        processor: Any = self.processing_class
        if self.args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            name = processor.model_input_names[0]
            dataset = [{name: range(length)} for length in dataset.lengths()]
        return super()._get_train_sampler(dataset)

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
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                replace_folder(self._save_folder / name, run_folder / name)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._save_folder, ignore_errors=True)
            self._save_folder = None
        if self.args.should_save:
            remove_old_checkpoints(str(run_folder), self.args.save_total_limit)

    def save_model(self, output_dir=None, _internal_call=False):
        """Saves the whole model; under FSDP, transformers saves none if checkpoints are in shards, the default."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        """Saves the student as a folder that anyone can load, with the objective in a separate file."""
        if not self.args.should_save:
            return
        module = self._module
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        student, objective = (_child_state(state_dict, name) for name in ("student", "objective"))
        if student is not None:  # gathering makes copies of weights that are one
            student = {
                name: value for name, value in student.items() if name not in module.student.all_tied_weights_keys
            }
        # Checkpoints use the module's names, so that a resume finds every weight. Finished models use the names of
        # the language model's published checkpoints, which transformers 4.57 reads as well.
        is_checkpoint = self._save_folder is not None
        module.student.save_pretrained(folder, state_dict=student, save_original_format=not is_checkpoint)
        save_objective(module.objective, folder, objective)
        self.processing_class.save_pretrained(folder)

    def save_whole(self, final: Path, report: dict, settings: ObjectiveSettings) -> None:
        """
        Saves a finished stage: student, objective, its settings and the report, in a folder that appears when it is
        complete.
        """
        check_weights(self.state.global_step, self._module, self.accelerator)
        incomplete = final.with_name(f"{final.name}.incomplete")
        if self.args.should_save:
            shutil.rmtree(incomplete, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(incomplete))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if not any(incomplete.glob("model*.safetensors")):
                raise UserError(
                    f"{incomplete} has no weights, so the stage is not finished: under ZeRO-3, DeepSpeed gathers them "
                    "with stage3_gather_16bit_weights_on_model_save. Set it to true and run the same command again."
                )
            write_json(incomplete / STAGE_FILE, report)
            save_settings(settings, incomplete)
            replace_folder(incomplete, final)
            # A run that was killed after its last checkpoint saves no other.
            remove_old_checkpoints(self.args.output_dir, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        check_random_states(resume_from_checkpoint, self.args.world_size)
        if self.is_fsdp_enabled:
            form = self.accelerator.state.fsdp_plugin.state_dict_type.name
            if form not in SHARDED_STATE_FILES:
                raise UserError(
                    f"fsdp_state_dict_type is {form}; training resumes from {' or '.join(SHARDED_STATE_FILES)} only."
                )
            check_state_files(resume_from_checkpoint, SHARDED_STATE_FILES[form])
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_checkpoint(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)

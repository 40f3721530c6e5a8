"""The part of the trainer that saves checkpoints and finished stages, and resumes from a checkpoint."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from ..files.atomic import replace_folder, write_json
from ..files.manifest import read_identity, write_manifest
from ..files.model_folder import ADAPTER_CONFIG
from ..files.run_contents import HUB_FOLDER, MODEL_FOLDER, SHARDED_STATE_FILES, STAGE_FILE
from ..files.user_error import UserError
from ..files.write_errors import describe_write_error
from ..hub_cards.card_options import CardOptions
from ..hub_cards.export import export
from ..hub_cards.publish import publish
from .checkpoints import (
    check_state_files,
    list_checkpoints,
    load_checkpoint,
    remove_old_checkpoints,
    save_objective,
)
from .data.processes import decide_once
from .distribution.finite_checks import check_weights
from .finished_stage import ObjectiveSettings, save_settings
from .monitoring.report import report_training
from .objectives.encoder_passes import Student
from .objectives.objective import ObjectiveOptions
from .recipes.arguments import HawaiiTrainingArguments
from .recipes.objectives import StudentWithObjective
from .students.frozen_base import FrozenBase


def _child_state(state_dict: dict | None, child: str) -> dict | None:
    """Returns the part of a gathered state that belongs to a child of the module; `None` if nothing was gathered."""
    if state_dict is None:
        return None
    return {
        name.removeprefix(f"{child}."): value for name, value in state_dict.items() if name.startswith(f"{child}.")
    }


class SavingTrainer(Trainer):
    """
    transformers' Trainer with checkpoints that are never incomplete, agree with a manifest, and contain the objective.

    Args:
        model (`StudentWithObjective`):
            The trained modules.
        base (`FrozenBase`, *optional*):
            Frozen weights of a student with a LoRA or a quantized language model: checkpoints contain only trained
            weights.
        identity (`dict`, *optional*):
            Identity of the run for the manifests, see [`describe_stage`].
        kwargs:
            As for [`~transformers.Trainer`].
    """

    args: HawaiiTrainingArguments

    def __init__(
        self,
        model: StudentWithObjective,
        base: FrozenBase | None = None,
        identity: dict[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(model=model, **kwargs)
        self.base = base
        self.identity = {
            "world_size": self.args.world_size,
            **(identity or {}),
            "samples": len(self.train_dataset) if has_length(self.train_dataset) else None,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        self._save_folder: Path | None = None
        self._write_errors: list[Exception] = []

    @property
    def _module(self) -> StudentWithObjective:
        """The trained module, without wrappers."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def student(self) -> Student:
        """The trained model, without wrappers."""
        return self._module.student

    @property
    def options(self) -> ObjectiveOptions:
        """The options of the objective."""
        return self._module.objective.options  # pyright: ignore[reportReturnType]

    def _get_output_dir(self, trial):
        return str(self._save_folder) if self._save_folder is not None else super()._get_output_dir(trial)

    @contextmanager
    def _noting_write_errors(self) -> Iterator[None]:
        """
        Records an error of the file system. If it were raised, the other processes would wait for this one forever.
        """
        try:
            yield
        except Exception as error:  # Rust libraries raise it for a full disk; other errors are raised again
            if describe_write_error(error, Path(self.args.output_dir)) is None:
                raise
            self._write_errors.append(error)

    def _raise_write_errors(self, folder: Path) -> None:
        """Raises the first recorded error on all processes, as one sentence that names the folder."""
        errors, self._write_errors = self._write_errors, []
        problems = gather_object([describe_write_error(error, folder) for error in errors[:1]])
        if not problems:
            return
        kept = [path for path in list_checkpoints(self.args.output_dir) if path != folder]
        remains = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        problem, step = problems[0]
        raise UserError(f"{problem}; {remains}: {step} and run the same command again.") from (errors or [None])[0]

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
        Saves the whole model. Under FSDP, transformers saves no model if checkpoints are sharded, the default. Under
        DeepSpeed, it handles an error of saving like one of gathering.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            wrapped = self.deepspeed if self.is_deepspeed_enabled else self.model
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(wrapped))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        """Saves the student in a folder for `from_pretrained`, with the objective in a separate file."""
        if not self.args.should_save:
            return
        module = self._module
        folder = Path(output_dir or self.args.output_dir)
        student, objective = (_child_state(state_dict, name) for name in ("student", "objective"))
        if student is not None:  # gathering makes copies of tied weights
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
        Saves a finished stage: student, objective, its settings and the report, in a folder that gets its name when it
        is complete.
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
            # A run that was killed after its last checkpoint saves no other, which would remove old ones.
            remove_old_checkpoints(self.args.output_dir, self.args.save_total_limit, self.state.global_step)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        commit_message: str = "Upload HAWAII",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card_options,
    ) -> str:
        """
        Uploads the current student to `hub_model_id`, as a published folder with code, card and manifest.

        What only `hawaii train` knows is missing: the recipe, the origins of models and data with their licenses, and
        the picture of the losses. Name base models and data in `card_options`.

        Args:
            commit_message (`str`, *optional*, defaults to `"Upload HAWAII"`):
                Subject of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Has to be `True`.
            token (`str`, *optional*):
                Token of the Hub; defaults to `hub_token`, then to the saved one.
            revision (`str`, *optional*):
                Has to be `None`: the upload goes to the main branch.
            private (`bool`, *optional*):
                Whether a new repository is private; defaults to `hub_private_repo`.
            card_options:
                Fields of [`CardOptions`] for the card: `license`, which the trainer does not know, `language`,
                `datasets` and `base_model`.

        Returns:
            `str`: As for [`publish`].

        Raises:
            UserError: there is no `hub_model_id` or no license, an argument is not supported, or the upload fails.
        """
        name = self.args.hub_model_id
        if name is None:
            raise UserError("push_to_hub needs the name of the repository: set hub_model_id to user/name.")
        if not blocking or revision or self.args.hub_revision:
            raise UserError(
                "push_to_hub waits for the upload and uses the main branch: leave out blocking and revision."
            )
        known = [field.name for field in fields(CardOptions)]
        if unknown := [option for option in card_options if option not in known]:
            raise UserError(f"push_to_hub has no option {unknown[0]}: write one of {', '.join(known)}.")
        folder = Path(self.args.output_dir) / "push.incomplete"
        private = bool(self.args.hub_private_repo if private is None else private)
        token = token or self.args.hub_token
        options = {"private": private, "token": token, "commit_message": commit_message, **card_options}
        try:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            self.accelerator.wait_for_everyone()
            self.save_model(str(folder / MODEL_FOLDER))
            self._raise_write_errors(folder)
            return decide_once(self._publish, folder, name, options)
        finally:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)

    def _publish(self, folder: Path, name: str, options: dict[str, Any]) -> str:
        report, saved = report_training(self), folder / MODEL_FOLDER
        if (saved / ADAPTER_CONFIG).is_file():
            raise UserError("push_to_hub needs a whole model: remove `merge: false`.")
        write_manifest(saved, {**self.identity, "step": self.state.global_step})
        facts = {"name": name.rpartition("/")[2], "train_seconds": report["seconds"]}
        facts |= {"num_parameters": report["num_parameters"], "stages": {"training": report}}
        export(saved, folder / HUB_FOLDER, facts)
        return publish(str(folder / HUB_FOLDER), name, **options)

    def _load_rng_state(self, checkpoint):
        """
        As transformers does. With another number of processes, dropout gets a new seed, the same in each process.
        """
        if read_identity(checkpoint)["world_size"] == self.args.world_size:
            super()._load_rng_state(checkpoint)
        else:
            set_seed(self.args.seed + self.state.global_step)

    def _check_base(self, checkpoint: str) -> None:
        """Raises a `UserError` if a sharded checkpoint was trained with other frozen weights."""
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

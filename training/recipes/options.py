"""The options of a stage: which keys exist, and their values as the types of the dataclasses."""

from dataclasses import fields
from typing import Any

from .arguments import DataArguments, HawaiiTrainingArguments, ModelArguments
from .objectives import OBJECTIVES
from .ranges import check_range
from .values import convert_option


STAGE_ARGUMENTS = (ModelArguments, DataArguments, HawaiiTrainingArguments)
TYPES = {field.name: field.type for arguments in STAGE_ARGUMENTS for field in fields(arguments) if field.init}
OBJECTIVE_TYPES = {
    name: {field.name: field.type for field in fields(objective.options_class)}
    for name, objective in OBJECTIVES.items()
}
# A recipe may contain the options of all objectives, including those that are not chosen.
OPTIONS = [*TYPES, *dict.fromkeys(name for types in OBJECTIVE_TYPES.values() for name in types)]
# Options without an effect on the trained weights: paths of files (their content is compared), logging, evaluation,
# saving, workers, devices, and options that change only speed and memory, not even the rounding as compilation does.
# All other options are compared, including new ones.
WITHOUT_EFFECT = set(
    "output_dir data_path image_folder data eval_data_path teacher_cache follow_links trust_remote_code "
    "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs "
    "use_cache torch_empty_cache_steps bf16_full_eval fp16_full_eval "
    "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter "
    "include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project logging_dir "
    "trackio_space_id trackio_bucket_id trackio_static_space_id "
    "eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start "
    "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics "
    "save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint "
    "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
    "load_best_model_at_end metric_for_best_model greater_is_better resume_from_checkpoint "
    "restore_callback_states_from_checkpoint use_cpu local_rank strategy num_processes shard_teachers "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context remove_unused_columns label_names length_column_name "
    "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
    "fsdp fsdp_config deepspeed parallelism_config debug skip_memory_metrics do_train do_eval do_predict".split()
)


def convert_options(location: str, given: dict[str, Any]) -> dict[str, Any]:
    """
    Converts the options of a stage; those of other objectives than the chosen one are left out. An empty option of the
    objective has the objective's default.

    Raises:
        UserError: an option cannot have its value, because of the type or the size.
    """
    chosen = OBJECTIVE_TYPES.get(given.get("objective", HawaiiTrainingArguments.objective), {})
    given = {name: value for name, value in given.items() if name in TYPES or (name in chosen and value is not None)}
    types = {**TYPES, **chosen}
    options = {name: convert_option(location, name, value, types[name]) for name, value in given.items()}
    for name, value in options.items():
        check_range(location, name, value)
    return options

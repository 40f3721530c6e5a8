"""
Files that `hawaii train` writes, and their names. This module defines the layout of all these folders.

```
RUN/                              `output_dir` of the recipe
  train_results.json              RESULTS_FILE: the report of every stage, the training time and the parameter count
  check.json, check.md            CHECK_FILE, CHECK_TABLES_FILE: the report of `hawaii check`
  .train.lock                     LOCK_FILE: locked while `hawaii train` runs, with its host and process id
  STAGE/                          one folder per stage of the recipe
    log.jsonl                     LOG_FILE: all log entries
    checkpoint-STEP/              a checkpoint of the unfinished stage
      config.json, model*.safetensors   the student
      trained.safetensors               TRAINED_FILE: instead of the student, with `lora` or `quantization`: only the
                                        trained weights, and the hash of the frozen ones
      processor files                   its tokenizer and image processor
      objective.safetensors             OBJECTIVE_FILE: weights of the objective's projections
      optimizer.pt, scheduler.pt, trainer_state.json, rng_state*.pth   the state to resume from
      pytorch_model_fsdp*, optimizer*   instead of optimizer.pt, if FSDP shards the run: student, objective, optimizer
      latest, global_step*              the same, if DeepSpeed shards it
      manifest.json                     MANIFEST_FILE, written last: size and hash of every file, and the run's
                                        identity, see `describe_stage`
    model/                        MODEL_FOLDER: the finished stage, from which the next one starts
      student and processor             as in a checkpoint, but always the complete student
      adapter_config.json, adapter_model.safetensors   instead of the student, with `merge: false`: a folder of PEFT
      objective.safetensors             OBJECTIVE_FILE
      objective.json                    OBJECTIVE_SETTINGS_FILE: the objective's options and the teachers; may name
                                        local folders
      stage.json                        STAGE_FILE: report of the stage (steps, seconds, teachers, last log entry,
                                        origins of models and data); may name local folders
      manifest.json                     MANIFEST_FILE, as in a checkpoint
    base/                         BASE_FOLDER: with `merge: false`, the student that the adapters of `model` belong to
  hub/                            HUB_FOLDER: the published folder, made from the last stage
    config.json, model*.safetensors, processor files, *_hawaii.py (the code), README.md (the model card)
    training.json                       FACTS_FILE: train_results.json and the origin of models and data, from which
                                        the card is written
    recipe.yaml                         RECIPE_FILE: the recipe without local paths
    loss_curves.png                     CURVES_FILE: the losses of all stages, if matplotlib is installed
    .eval_results/lmms_eval.yaml        EVAL_RESULTS_FILE: scores on data sets of the Hub, see `write_eval_results`
    manifest.json                       MANIFEST_FILE: size and hash of every file but the card and the scores, and the
                                        part of the identity that names no local folder
```

The objective's files stay in the run: a published folder contains only the student. While a folder is written, it has
another name (`incomplete`, `model.incomplete`, `hub.incomplete`). A folder with one of the names above has therefore
been complete; its manifest shows whether it still is.
"""

RESULTS_FILE = "train_results.json"
MANIFEST_FILE = "manifest.json"
CHECK_FILE = "check.json"
CHECK_TABLES_FILE = "check.md"
LOCK_FILE = ".train.lock"
LOG_FILE = "log.jsonl"
MODEL_FOLDER = "model"
HUB_FOLDER = "hub"
OBJECTIVE_FILE = "objective.safetensors"
OBJECTIVE_SETTINGS_FILE = "objective.json"
STAGE_FILE = "stage.json"
TRAINED_FILE = "trained.safetensors"
BASE_FOLDER = "base"
FACTS_FILE = "training.json"
CARD_FILE = "README.md"
RECIPE_FILE = "recipe.yaml"
CURVES_FILE = "loss_curves.png"
EVAL_RESULTS_FILE = ".eval_results/lmms_eval.yaml"
# If one of these is missing, transformers resumes without an error, but with different numbers.
CHECKPOINT_STATE_FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json", OBJECTIVE_FILE)
# The same for a run that FSDP shards, by its type of state dict.
SHARDED_STATE_FILES = {
    "SHARDED_STATE_DICT": ("pytorch_model_fsdp_0", "optimizer_0", "scheduler.pt", "trainer_state.json"),
    "FULL_STATE_DICT": ("pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt", "trainer_state.json"),
}
# The same for a run that DeepSpeed shards; the folder of the step is needed as well.
ZERO_STATE_FILES = ("latest", "scheduler.pt", "trainer_state.json")

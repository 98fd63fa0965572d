# make setup | demo | test | check | test-slow | bench | prove-...
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test check test-slow bench grid gpu-runs prove-throughput prove-methods prove-unsloth prove-llamafactory \
	prove-kill prove-regret prove-space prove-cluster clean

setup: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	$(BIN)/python -m compileall -q advisor estimators profiles
	$(BIN)/python -m compileall -q -l $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	touch $(STAMP)

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo/run.sh

test: setup
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-slow: setup
	$(BIN)/python -m pytest -m "slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 -m "not slow and not thorough and not platform and not gpu"

bench: setup
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.startup

# Both memory tiers on 3,260 cells drawn over all axes; goes on where it stopped (about two hours)
grid: setup
	$(BIN)/python -m benchmarks.grid --jobs 2 --replayed

# The planned grid of emitted projects on this machine's GPU, with each platform's packages in one environment or named by
# --site (ten minutes on an H200); rows as in tests/measured/ours.jsonl
gpu-runs: setup
	$(BIN)/python -m benchmarks.gpu.run gpu-runs.jsonl

# Calibrate this CPU, predict real training steps, run them, compare (about 40 minutes on two idle cores)
prove-throughput: setup
	$(BIN)/python demo/prepare.py demo-out/assets
	$(BIN)/python -m benchmarks.prove_throughput
	$(BIN)/python -m benchmarks.calibrated_throughput

# The recommended plan against 20 others that were really run, on three small models (about half an hour)
prove-regret: setup
	$(BIN)/python -m benchmarks.regret

# Every method and task of the Hugging Face projects trained on this CPU; writes docs/methods-on-cpu.md (fifteen minutes)
prove-methods: setup
	$(BIN)/python -m benchmarks.methods_on_cpu

# Unsloth's projects against the installed package, without a GPU (its environment: `ftadvise env create unsloth --cpu`)
prove-unsloth: setup
	$(BIN)/python -m pytest -rs tests/advisor/test_unsloth_installed.py

# DeepSpeed without its kernels, which are not needed to read its settings; beside the environments, none of which has it
DEEPSPEED := .cache/deepspeed
$(DEEPSPEED): | $(STAMP)
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --target $@ \
		deepspeed==0.19.8 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 einops==0.8.2 py-cpuinfo==9.0.0

# 4,332 plans of the Hugging Face projects read by TRL, PEFT, bitsandbytes, accelerate and DeepSpeed (a few minutes)
prove-space: setup $(DEEPSPEED)
	PYTHONPATH=$(abspath $(DEEPSPEED)) DS_ACCELERATOR=cpu $(BIN)/python -m pytest -rs tests/advisor/test_emit_space.py

# LLaMA-Factory's own parser on 3,120 emitted projects, and real CPU training (about half an hour). Its interpreter comes
# from `ftadvise env create llamafactory`, or is named in FTADVISE_LLAMAFACTORY_PYTHON.
prove-llamafactory: setup $(DEEPSPEED)
	PYTHONPATH=$(abspath $(DEEPSPEED)) DS_ACCELERATOR=cpu $(BIN)/python -m pytest -rs \
		tests/advisor/test_llamafactory_installed.py
	$(BIN)/python -m pytest -rs tests/advisor/test_launch_llamafactory.py
	$(BIN)/python -m benchmarks.llamafactory_on_cpu

# kill -9 of trainer, ftadvise or both at 50 random moments of real tiny trainings (about 20 minutes on two idle cores)
prove-kill: setup
	PROVE_KILL_RECORD=benchmarks/results/prove-kill.json $(BIN)/python -m pytest -s tests/advisor/test_prove_kill.py

# Two processes on this CPU; a SLURM cluster of one node (Debian's slurmctld, slurmd, slurm-client, munge) and a local Ray
# one (`ray` on the PATH, or its folder in FTADVISE_RAY_BIN) that run an emitted job (about 20 minutes on two idle cores)
prove-cluster: setup
	$(BIN)/python -m pytest -rs tests/advisor/test_launch_processes.py tests/advisor/test_launch_queues.py \
		tests/advisor/test_skypilot_installed.py

clean:
	rm -rf $(VENV) .cache demo-out

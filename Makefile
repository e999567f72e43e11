# `make` builds .venv with everything; `make serve` uses the same .venv with the server's packages alone.
PYTHON ?= python3
# One CPU build for every machine without CUDA; a GPU machine brings its own torch (pyproject asks for >=2.8).
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Nothing that is started here reports to anybody, ONNX Runtime included.
export ORT_DISABLE_TELEMETRY := 1
# Tests start many interpreters, each of which would compile our sources again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := all
.PHONY: all help serve test test-interop test-full test-numerics fuzz lint format page-picture kernels-picture clean proto serve-triton test-triton bench bench-graphs bench-sizing soak bench-overload bench-attacks bench-client bench-triton bench-workers

all: .venv/.dev-installed  ## everything: server, client, training, development tools

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.venv/.created:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	touch $@

.venv/.serve-installed: .venv/.created pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[cpu]'
	touch $@

.venv/.dev-installed: .venv/.created pyproject.toml
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[cpu,otel,train]' --group dev
	touch $@ .venv/.serve-installed

.venv-triton/.installed: tests/triton/install.sh tests/triton/backends/onnxruntime/model.py
	tests/triton/install.sh .venv-triton
	touch $@

.venv-interop/.installed: .venv/.dev-installed tests/interop/install.sh tests/interop/versions.txt
	UV=$(BIN)/uv tests/interop/install.sh .venv-interop
	touch $@

serve: .venv/.serve-installed  ## start the server on localhost:8080; WEIGHTS=imagenet for a thousand classes
	$(BIN)/alexnet-server $(if $(WEIGHTS),--weights $(WEIGHTS))

serve-triton: .venv/.serve-installed .venv-triton/.installed  ## Triton, and the gateway on localhost:8080
	$(BIN)/alexnet-server unpack model_repository
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/triton/serve.sh model_repository

QUICK := not slow and not triton and not image and not interop

# Two at a time, a file in one process: most of them wait for servers that start.
PARALLEL := -n 2 --dist loadfile

# Training in processes of its own, a thread each: less native code of different makers side by side.
test: .venv/.dev-installed  ## the tests; slow ones and those that need a real Triton or images are left out
	$(BIN)/pytest $(PARALLEL) -m '$(QUICK)' --ignore=tests/training
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m '$(QUICK)' tests/training

test-full: .venv/.dev-installed .venv-interop/.installed  ## the slow ones too
	$(BIN)/pytest -m 'not triton and not image'

# Every way in which PyTorch and oneDNN may add: the widest vectors that they may use, and the threads.
VECTORS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	ONEDNN_MAX_CPU_ISA=AVX512_CORE ONEDNN_MAX_CPU_ISA=ALL

test-numerics: .venv/.dev-installed  ## the numeric tests, as other processors would run them
	set -e; for threads in 1 2; do for vectors in $(VECTORS); do \
		echo "$$vectors, $$threads threads"; \
		env $$vectors OMP_NUM_THREADS=$$threads $(BIN)/pytest -q $(PARALLEL) -m 'numerics and not slow'; \
	done; done

fuzz: .venv/.dev-installed  ## mutated bodies, weight files and photos; FUZZ='--count 100000 --seed 7'
	$(BIN)/python -m tests.fuzz.bodies $(FUZZ)
	$(BIN)/python -m tests.fuzz.photos $(FUZZ)

test-interop: .venv/.dev-installed .venv-interop/.installed  ## clients that others wrote, against both ports
	$(BIN)/pytest -m interop

test-triton: .venv/.dev-installed .venv-triton/.installed  ## the tests that need the real Triton
	$(BIN)/pytest -m triton

bench-triton: .venv/.dev-installed .venv-triton/.installed  ## in-process, gateway with Triton, Triton alone
	$(BIN)/alexnet-server unpack model_repository
	$(BIN)/python -m bench.triton $(BENCH)

lint: .venv/.dev-installed  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev-installed  ## the server against its limit, and against Mosec with OpenVINO on the same graph
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m bench.serve --mosec $(BENCH)

bench-workers: .venv/.dev-installed  ## two workers against one, where Python is the limit
	$(BIN)/python -m bench.workers $(BENCH)

bench-graphs: .venv/.dev-installed  ## every view in every precision, against plain LRN operators
	$(BIN)/python -m bench.graphs $(BENCH)

bench-sizing: .venv/.dev-installed  ## photos/s and memory of a process with one core and two
	$(BIN)/python -m bench.sizing $(BENCH)

soak: .venv/.dev-installed  ## what 20,000 requests leave behind: memory, descriptors, threads, tasks
	$(BIN)/python -m bench.soak $(BENCH)

bench-overload: .venv/.dev-installed  ## ten times what the server can do, for half a minute
	$(BIN)/python -m bench.overload $(BENCH)

bench-attacks: .venv/.dev-installed  ## who suffers while somebody attacks: /livez, memory, innocent photos
	$(BIN)/python -m bench.attacks $(BENCH)

bench-client: .venv/.dev-installed  ## classify_many against the bare loop
	$(BIN)/python -m bench.client $(BENCH)

kernels-picture: .venv/.dev-installed  ## the picture of the shipped model's first kernels, in README and card
	$(BIN)/python -m tests.project.kernels docs/kernels.png

page-picture: .venv/.dev-installed kernels-picture  ## the README's pictures of the page, from the real server
	$(BIN)/python -m tests.browser.chromium --why --photo tests/data/cc0/coffee.jpg docs/page.png
	$(BIN)/python -m tests.browser.chromium --why --photo tests/data/cc0/coffee.jpg --scheme dark docs/page-dark.png

format: .venv/.dev-installed  ## ruff, writing what it would change
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove environments and builds
	rm -rf .venv .venv-triton .venv-interop dist build

proto: .venv/.dev-installed  ## generate the stubs of clients/alexnet_client/pb (a test holds them current)
	$(BIN)/python -m grpc_tools.protoc -I clients --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --python_out=clients --grpc_python_out=clients \
		--mypy_out=clients --mypy_grpc_out=clients alexnet_client/pb/classifier.proto

# --- shipping: images, Kubernetes, monitoring -----------------------------------------------------------------------
.PHONY: test-k8s test-image test-rolling lock release

test-k8s: .venv/.dev-installed  ## every overlay rendered and checked; needs kubectl
	@command -v kubectl >/dev/null || { echo 'test-k8s needs kubectl (1.27 or later)' >&2; exit 1; }
	$(BIN)/pytest tests/k8s

test-image: .venv/.dev-installed  ## build, start and stop the images; needs root, buildah and debootstrap
	@command -v buildah debootstrap >/dev/null || { echo 'test-image needs buildah and debootstrap' >&2; exit 1; }
	$(BIN)/pytest --log-cli-level=info tests/image

test-rolling: .venv/.dev-installed  ## replace three gateways behind HAProxy, under load; no request may fail
	@command -v haproxy >/dev/null || { echo 'test-rolling needs haproxy' >&2; exit 1; }
	$(BIN)/pytest --log-cli-level=info tests/rolling

release: .venv/.dev-installed  ## wheel and sdist into dist, tried in empty environments; WEIGHTS=none: without weights
	PYTHON=$(BIN)/python WEIGHTS=$(WEIGHTS) .ci/release

lock: .venv/.dev-installed  ## pin the images' packages by hash: docker/locks
	UV=$(BIN)/uv docker/lock.sh

# --- training -------------------------------------------------------------------------------------------------------
.PHONY: bench-train

bench-train: .venv/.dev-installed  ## training: images/s against eager PyTorch, the step's parts, the projection
	$(BIN)/python -m bench.train $(BENCH)

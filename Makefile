# `make demo` and `make test` set up everything they need. Other targets are for contributors.
PYTHON ?= python3
TEST := .venv
DEMO := .venv-demo
BENCH := .venv-bench
FORMAT ?= all
SECONDS ?= 60
INSTALL = $(1)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: demo test check fuzz bench bench-pairs clean

demo: $(DEMO)/ready  ## Keras weights in a PyTorch model, proven, fine-tuned and compared
	$(DEMO)/bin/regraft demo --folder build/demo

test: $(TEST)/ready  ## every test
	$(TEST)/bin/python -m pytest -n 2 --dist loadfile

check: $(TEST)/ready  ## lint, types, walls between rooms
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/pyright --pythonpath $(TEST)/bin/python
	$(TEST)/bin/lint-imports

fuzz: $(TEST)/ready  ## every reader, or one: make fuzz FORMAT=onnx SECONDS=600
	$(call INSTALL,$(TEST)) -e '.[fuzz]'
	$(TEST)/bin/python -m tests.fuzz.run --format $(FORMAT) --seconds $(SECONDS)

bench: $(TEST)/ready  ## timings, as ratios to a peer in the same run
	$(TEST)/bin/python benchmarks/inspect_speed.py
	$(TEST)/bin/python -m benchmarks.plan_speed

bench-pairs: $(BENCH)/ready  ## pairs of implementations, scored beside what people use today
	mkdir -p build
	$(BENCH)/bin/python -m benchmarks.pairs --rivals --output build/pairs.md

clean:
	rm -rf $(TEST) $(DEMO) $(BENCH) build

# The demo's own environment holds what its extra asks for and no more, so that it shows whether
# that is enough.
$(DEMO)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(call INSTALL,$(DEMO)) torch
	$(call INSTALL,$(DEMO)) -e '.[demo]'
	$(@D)/bin/python -m compileall -q src  # so that the first start is as quick as any
	touch $@

# torchvision and keras-hub ask for CUDA builds of what is here already: without dependencies.
$(TEST)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST)
	$(call INSTALL,$(TEST)) torch
	$(call INSTALL,$(TEST)) --no-deps torchvision
	$(call INSTALL,$(TEST)) -e '.[all,test]'
	$(@D)/bin/python -m compileall -q src  # so that the first start is as quick as any
	touch $@

# As for tests, with the libraries whose models the pairs are made of, and the rival.
$(BENCH)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(call INSTALL,$(BENCH)) torch
	$(call INSTALL,$(BENCH)) --no-deps torchvision open_clip_torch keras-hub
	$(call INSTALL,$(BENCH)) -e '.[bench]'
	$(@D)/bin/python -m compileall -q src  # so that the first start is as quick as any
	touch $@

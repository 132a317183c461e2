# Every target does its own set-up; `make demo` and `make test` need nothing before them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
C_SOURCES := $(wildcard native/src/*.c bench/native/*.c bench/engine/*.c)
C_INPUTS := $(wildcard native/src/*.c) $(wildcard native/include/*.h native/src/*.h) native/_build.py
C_STYLED := $(wildcard native/src/*.[ch] native/include/*.h bench/native/*.[ch] bench/engine/*.c tests/native/*/*.[ch] tests/beds/guest/*.c)
C_FLAGS := -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wconversion -Wshadow -Werror -Inative/include
PACKAGES := daemon native config proto
PROTOS := $(patsubst %,bentpipe/%,$(wildcard proto/*.proto))
BENCH_PYTHON := PYTHONPATH=build/bench $(BIN)/python -P

.PHONY: deb demo test coverage sanitize soak fuzz check generate format docs pictures hooks test-matrix lock bench bench-quick bench-report bench-compare setup peers clean

demo: setup
	$(BIN)/bentpipe demo

# The tests wait more than they compute, so more test processes run than there are cores. A file stays in one process, so that
# its fixtures are made once. The files begin in the order of tests/conftest.py, not with those of most tests. The coverage runs
# beside, and is printed if it fails. The tests come last, so that the output ends with their count.
TEST_PROCESSES ?= 6
test: setup peers
	mkdir -p build/coverage
	bash .ci/coverage >build/coverage/log 2>&1 & covering=$$!; \
	    $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder; tests=$$?; \
	    wait $$covering; floors=$$?; \
	    if [ $$floors != 0 ]; then cat build/coverage/log >&2; echo "the coverage of a part is below its floor" >&2; fi; \
	    [ $$tests = 0 ] && [ $$floors = 0 ]

# Runs the tests of the pure parts alone, and fails if a part is covered less than its floor in .ci/coverage-floors.
coverage: setup
	bash .ci/coverage

# Runs the engine under ASan+UBSan and TSan, and in the guest that has kTLS, and compares C with Python, for about two hours.
# `make test` has a bounded run of the same. LSan finds leaks, after 100,000 connections.
sanitize: setup
	BENTPIPE_EXAMPLES=2000 BENTPIPE_SHORT_CONNECTIONS=20000 $(BIN)/pytest tests/native/test_model.py
	BENTPIPE_SHORT_CONNECTIONS=100000 $(BIN)/pytest tests/native/test_model.py -k "many_short and address and auto"
	BENTPIPE_GUEST_EXAMPLES=1000 $(BIN)/pytest tests/native/test_guest.py
	BENTPIPE_OPENINGS=200000 $(BIN)/pytest tests/native/test_greeting.py tests/native/test_request.py tests/native/test_first_settings.py -o faulthandler_timeout=7200

# Runs the tests that take half a minute or more each, those in a guest that has booted and in Debian roots (made once) too.
soak: setup peers
	PYTHONPATH=tests $(BIN)/python -P -m beds.guest.machine
	PYTHONPATH=tests $(BIN)/python -P -m beds.booted.root
	PYTHONPATH=tests $(BIN)/python -P -m beds.booted.acme
	PYTHONPATH=tests $(BIN)/python -P -m beds.pages.aws --get
	$(BIN)/pytest -m slow -o faulthandler_timeout=900

# Fuzzes the greeting for FUZZ_S seconds. Its findings stay in build/fuzz, and the next run begins with them.
FUZZ_S ?= 600
fuzz: setup
	mkdir -p build/fuzz
	PYTHONPATH=tests $(BIN)/python -P -m beds.fuzz.fuzz_greeting -max_total_time=$(FUZZ_S) -max_len=8192 -artifact_prefix=build/fuzz/ \
	    build/fuzz tests/corpus

# Gets the tests' peers: the distribution's packages, then those built from Go, JavaScript, Rust and Java (BuildKit takes
# minutes, once). It names each peer that is not available, and the tests of that peer are skipped.
peers: setup
	bash tests/peers/system-packages
	PYTHONPATH=tests $(BIN)/python -P -m beds.peers.builds
	PYTHONPATH=tests $(BIN)/python -P -m beds.peers.earthly_buildkit

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(C_STYLED)
	$(BIN)/mypy
	cd build/types && ../../$(BIN)/lint-imports --config ../../.importlinter
	set -e; for source in $(C_SOURCES); do gcc $(C_FLAGS) -fanalyzer -c $$source -o /dev/null; done
	gcc $(C_FLAGS) -DBP_DEBUG -fsyntax-only $(wildcard native/src/*.c)

# proto/*_pb2.py and .pyi, which are committed and never edited; tests/proto/test_generated.py compares.
generate: setup
	$(BIN)/python -P -m grpc_tools.protoc -I build/types --python_out=build/types --pyi_out=build/types $(PROTOS)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_STYLED)

# Writes the pages that are made from the code.
docs: setup
	mkdir -p docs
	$(BIN)/python -P -m bentpipe.daemon.service.metric_docs > docs/metrics.md

# Takes the pictures of the page for operators, in Chromium.
pictures: setup peers
	PYTHONPATH=tests $(BIN)/python -P -m beds.peers.pictures

# From then on every commit must pass `make check`.
hooks:
	git config core.hooksPath .ci/hooks

# Runs the tests on Python 3.11 to 3.13. MATRIX_TESTS and MATRIX_VERSIONS choose fewer. See .ci/test-matrix.
test-matrix: setup peers
	bash .ci/test-matrix

setup: build/stamp.system build/stamp.venv build/stamp.native build/stamp.types

# System packages: as root they are installed, otherwise they are named.
build/stamp.system: .ci/system-packages
	mkdir -p build
	PYTHON=$(PYTHON) bash .ci/system-packages
	touch $@

build/stamp.venv: requirements.lock build/stamp.system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

build/stamp.native: build/stamp.venv setup.py pyproject.toml $(C_INPUTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

# Type checkers do not see the import hook of an editable install, so they get the namespace as links, and the tests' beds.
# bench/ is never installed: `import bench` finds it by a link of its own.
build/stamp.types: Makefile
	mkdir -p build/types/bentpipe
	for package in $(PACKAGES); do ln -sfn ../../../$$package build/types/bentpipe/$$package; done
	ln -sfn ../../tests/beds build/types/beds
	mkdir -p build/bench && ln -sfn ../../bench build/bench/bench
	touch $@

# Builds the Debian packages into dist/, as root, in a clean root of each distribution. See .ci/deb.
deb: setup
	bash .ci/deb

# Pins, with hashes, everything that pyproject.toml's ranges and extras allow.
lock:
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/python -m piptools compile --quiet --all-extras --all-build-deps --generate-hashes --allow-unsafe --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file requirements.lock pyproject.toml

# Measures the figures, beside HAProxy, nginx and Envoy. The results name what is not available. BENCH_ARGS: see bench/run.py.
bench bench-quick: setup build/stamp.bench
	$(BENCH_PYTHON) -m bench.run $(if $(filter bench-quick,$@),--quick) $(BENCH_ARGS)
	$(BENCH_PYTHON) -m bench.report

bench-report: setup
	$(BENCH_PYTHON) -m bench.report

# Compares the Python parts of this tree with those of another revision, interleaved, with a rank test.
bench-compare: setup
	$(BENCH_PYTHON) -m bench.compare $(BASE)

build/stamp.bench: bench/system-packages
	bash bench/system-packages
	touch $@

clean:
	rm -rf build dist $(VENV) *.egg-info native/*.so native/_engine.c
	find . -name __pycache__ -prune -exec rm -rf {} +

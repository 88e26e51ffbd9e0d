# The commands for people. `make demo` and `make test` need only make, Python >= 3.11 and a C++17 compiler:
# they make their own virtual environment from constraints.txt and build with CUDA=OFF.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
SYSTEM_PYTHON ?= python3
# `make dev PYTHON=...` builds for another interpreter that has cmake, ninja and pybind11.
PYTHON ?= $(VENV)/bin/python
CUDA ?= OFF
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ENV_STAMP := build/stamps/env
WHEEL_STAMP := build/stamps/wheel-$(CUDA)
SOURCES := $(shell find csrc ssdd_ext python -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \
	-o -name '*.py' -o -name '*.toml' -o -name '*.css' -o -name '*.js' -o -name '*.pyi' -o -name 'py.typed' -o -name 'CMakeLists.txt' \) 2>/dev/null | LC_ALL=C sort)
# Rewritten only when a source is added or removed, so that a deleted file also rebuilds the wheel.
SOURCE_LIST := build/stamps/sources
$(shell mkdir -p build/stamps && echo '$(SOURCES)' | cmp -s - $(SOURCE_LIST) || echo '$(SOURCES)' >$(SOURCE_LIST))

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# --- environment and installed wheel ----------------------------------------------------------------
$(ENV_STAMP): constraints.txt
	$(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ssdd needs Python >= 3.11")'
	test -x $(BIN)/python || $(SYSTEM_PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar off -r constraints.txt
	mkdir -p $(@D) && touch $@

# The CMake build directory is kept, so that a changed source recompiles only itself.
$(WHEEL_STAMP): $(ENV_STAMP) CMakeLists.txt pyproject.toml README.md LICENSE $(SOURCE_LIST) $(SOURCES)
	rm -rf build/dist && mkdir -p build/dist $(@D)
	$(PIP) wheel . --no-build-isolation --no-deps -w build/dist \
		--config-settings=build-dir=build/wheel --config-settings=cmake.define.CUDA=$(CUDA)
	$(PIP) install --no-deps --force-reinstall build/dist/*.whl
	rm -f build/stamps/wheel-* && touch $@

.PHONY: env install
env: $(ENV_STAMP) ## make the virtual environment
install: $(WHEEL_STAMP) ## build the wheel and install it into the virtual environment

# --- the two commands -------------------------------------------------------------------------------
.PHONY: demo test check bench
demo: $(WHEEL_STAMP) ## set up everything, then distil digits and show the results
	$(BIN)/ssdd demo $(ARGS)

# One thread per process of the tests, as two of them share the cores: two threads each take half as much time again.
# Tests of threads set their own numbers, and the core's own tests and the kernels' twin run on two.
TESTED := SSDD_TEST_INSTALLED=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
test: $(WHEEL_STAMP) ## set up everything, then run all tests against the installed wheel
	$(TESTED) $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=15 $(ARGS)

# The tests that changes break most often: laws, types, values and gradients on the CPU, one distillation.
CHECKED := tests/house/test_python_laws.py tests/house/test_native_laws.py tests/house/test_style.py tests/house/test_ops.py \
	tests/ext/test_krr.py tests/ext/test_gram.py tests/ext/test_cholesky.py tests/ext/test_plan.py tests/ssdd/config \
	tests/ssdd/distillation
check: $(WHEEL_STAMP) ## a subset of the tests for the loop of a developer, at most 90 seconds
	$(TESTED) $(BIN)/pytest -q -n $(JOBS) --dist loadfile $(CHECKED) $(ARGS)

bench: $(WHEEL_STAMP) ## run the benchmark scripts
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

# --- for developers ---------------------------------------------------------------------------------
.PHONY: dev
dev: ## build _C in place, for PYTHONPATH=.:python (PYTHON=... names the interpreter)
	@mkdir -p build; python=$$(realpath -s $(PYTHON)); bin=$$(dirname "$$python"); \
	"$$bin/cmake" -S . -B build/dev -G Ninja -DCMAKE_MAKE_PROGRAM="$$bin/ninja" -DCMAKE_EXPORT_COMPILE_COMMANDS=ON \
		-DSSDD_INPLACE=ON -DCUDA=$(CUDA) -DPython_EXECUTABLE="$$python" \
		-Dpybind11_DIR="$$("$$python" -m pybind11 --cmakedir)" >build/dev.log 2>&1 || { cat build/dev.log; exit 1; }; \
	"$$bin/cmake" --build build/dev -j $(JOBS)

CORE := tests/ext/core
# About one row in twelve of the kernels' tables runs under the sanitizers, and every kernel (tests/simt/test_kernels.py).
SANITIZED := product_ one_norm_ distances_ narrow_ fused_ large_ cluster_ one_pass_ gram_ cholesky_ krr_
EVERY := 10
.PHONY: sanitize aarch64
sanitize: $(ENV_STAMP) ## run the core's own tests under AddressSanitizer and UBSan, the CUDA kernels' twin also under TSan
	$(BIN)/cmake -S $(CORE) -B build/core-sanitize -G Ninja -DCMAKE_MAKE_PROGRAM="$$(realpath -s $(BIN))/ninja" \
		-DSANITIZE=address,undefined
	$(BIN)/cmake --build build/core-sanitize -j $(JOBS)
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive UBSAN_OPTIONS=print_stacktrace=1 build/core-sanitize/core_tests $(ARGS)
	for kind in address thread; do \
		sanitizers=$${kind/address/address,undefined}; \
		$(BIN)/cmake -S tests/simt -B build/simt-$$kind -G Ninja -DCMAKE_MAKE_PROGRAM="$$(realpath -s $(BIN))/ninja" \
			-DSANITIZE=$$sanitizers; \
		$(BIN)/cmake --build build/simt-$$kind -j $(JOBS) --target simt_tests; \
		for part in $(SANITIZED); do \
			echo "== kernels under $$sanitizers: $$part"; \
			time ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 TSAN_OPTIONS=halt_on_error=1 \
				OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive UBSAN_OPTIONS=print_stacktrace=1 \
				build/simt-$$kind/simt_tests $$part $(EVERY); \
		done; \
	done

aarch64: $(ENV_STAMP) ## cross-compile the core's own tests and run them under qemu-user
	$(BIN)/cmake -S $(CORE) -B build/core-aarch64 -G Ninja -DCMAKE_MAKE_PROGRAM="$$(realpath -s $(BIN))/ninja" \
		-DCMAKE_TOOLCHAIN_FILE=$(CORE)/aarch64.cmake
	$(BIN)/cmake --build build/core-aarch64 -j $(JOBS)
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive qemu-aarch64 -L /usr/aarch64-linux-gnu build/core-aarch64/core_tests $(ARGS)

.PHONY: docs
docs: $(WHEEL_STAMP) ## build the documentation site into build/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -P -m mkdocs build --strict --quiet --site-dir build/docs $(ARGS)

.PHONY: sass gpu
sass: $(ENV_STAMP) ## compile the CUDA kernels, disassemble them, and write the table benchmarks/results/sass.md
	$(BIN)/python benchmarks/gpu/sass.py --out benchmarks/results $(ARGS)

# Needs torch, numpy, scipy, pytest, cmake, ninja and pybind11 in PYTHON's environment; no network.
gpu: ## build for the GPU at hand, smoke test, benchmarks, tests, sanitizers (ARGS="--out DIR --only build,smoke,rows")
	$(PYTHON) -P benchmarks/gpu/run.py $(ARGS)

# The core with AddressSanitizer and UBSan, beside links to the package, for the campaign's hostile calls.
TORTURE := build/torture
.PHONY: torture
torture: $(WHEEL_STAMP) ## the campaign of faults (ARGS="--minutes 10 --only kills,calls,formula,readers,threads,memory --seed 0")
	@mkdir -p $(TORTURE)/site/ssdd_ext
	CXXFLAGS="-fsanitize=address,undefined -fno-omit-frame-pointer" $(BIN)/cmake -S . -B $(TORTURE)/core -G Ninja \
		-DCMAKE_MAKE_PROGRAM="$$(realpath -s $(BIN))/ninja" -DCUDA=OFF -DCMAKE_CXX_FLAGS_RELEASE="-O1 -g1" \
		-DPython_EXECUTABLE="$$(realpath -s $(BIN))/python" \
		-Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" >$(TORTURE)/core.log
	$(BIN)/cmake --build $(TORTURE)/core -j $(JOBS) >>$(TORTURE)/core.log
	cp $(TORTURE)/core/_C.*.so $(TORTURE)/site/ssdd_ext/
	for name in ssdd_ext/*; do case $$name in *.so|*/__pycache__) ;; *) ln -sfn "$$PWD/$$name" $(TORTURE)/site/$$name;; esac; done
	TORTURE_SANITIZED="$$PWD/$(TORTURE)/site" PYTHONSAFEPATH=1 $(BIN)/python tests/torture/run.py $(ARGS)

.PHONY: wheels
wheels: ## build, repair and try wheels for the Pythons of this machine (ARGS="--cuda ON --no-try")
	$(SYSTEM_PYTHON) .ci/wheels.py $(ARGS)

.PHONY: clean
clean: ## remove everything built (not the virtual environment)
	rm -rf build dist ssdd_ext/_C.*.so

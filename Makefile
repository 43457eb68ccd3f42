# make run    builds everything and answers a question with visible thinking
# make test   builds everything and runs the tests
# make check  lint and types;  make sanitize  the native tests under ASan and UBSan, then TSan
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(wildcard native/*.c native/*.h native/*.cpp native/cpu/*.c native/cpu/*.h templates/*.jinja)

.PHONY: all run test check format sanitize fuzz clean
all: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja

$(STAMP): $(BIN)/python pyproject.toml CMakeLists.txt $(NATIVE)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[test,dev]"
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/qwen3 run --thoughts show "What is 17 + 48 - 5?"

test: $(STAMP)
	$(BIN)/pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sanitize:
	cmake -S . -B build/asan -DQWEN3_PYTHON=OFF -DQWEN3_TESTS=ON -DQWEN3_SANITIZE=address,undefined
	cmake --build build/asan -j2
	ctest --test-dir build/asan --output-on-failure
	cmake -S . -B build/tsan -DQWEN3_PYTHON=OFF -DQWEN3_TESTS=ON -DQWEN3_SANITIZE=thread
	cmake --build build/tsan -j2
	ctest --test-dir build/tsan --output-on-failure -R "pool|engine"

fuzz:
	CC=clang CXX=clang++ cmake -S . -B build/fuzz -DQWEN3_PYTHON=OFF -DQWEN3_FUZZ=ON -DQWEN3_SANITIZE=address,undefined
	cmake --build build/fuzz -j2
	mkdir -p build/fuzz/corpus && cp tests/data/tiny.gguf build/fuzz/corpus/
	build/fuzz/tests/native/fuzz_gguf -max_total_time=20 -max_len=262144 -print_final_stats=1 build/fuzz/corpus

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache

# make run    builds everything and answers a question with visible thinking
# make test   builds everything and runs the tests
# make check  lint and types;  make sanitize  the native tests under ASan and UBSan, then TSan;
#               the GPU's kernels under MSan (clang)
# make kernels  10,000 random cases of every operation and backend, against scalar; nano on an
#               emulated GPU
# make cuda   what nvcc makes of the GPU's kernels, against docs/gpu-resources.md: registers must do
# make fuzz   the GGUF reader under libFuzzer (clang);  make arm  the ARM kernels under qemu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(wildcard native/*.c native/*.h native/*.cpp native/gpu/*.* native/gpu/kernels/*.h native/cpu/*.c native/cpu/*.h native/encode/*.c native/encode/*.h templates/*.jinja)
PACKAGES := $(wildcard qwen3cli/*/__init__.py)  # the installation knows where each one is

.PHONY: all run test check format sanitize kernels cuda fuzz arm clean
all: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja

$(STAMP): $(BIN)/python pyproject.toml CMakeLists.txt $(NATIVE) $(PACKAGES)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[test,dev]"
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/qwen3 run --thoughts show "What is 17 + 48 - 5?"

test: $(STAMP)
	$(BIN)/python tests/emulated.py
	$(BIN)/pytest -n auto --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

NATIVE_BUILD = $(BIN)/cmake -S . -DQWEN3_PYTHON=OFF -DQWEN3_WERROR=ON

THREADED := $(addprefix test_,pool forward together grammar importance experts check probe faults)
sanitize: $(BIN)/python
	$(NATIVE_BUILD) -B build/asan -DQWEN3_TESTS=ON -DQWEN3_SANITIZE=address,undefined
	$(BIN)/cmake --build build/asan -j2
	$(BIN)/ctest --test-dir build/asan --output-on-failure -j2
	$(NATIVE_BUILD) -B build/tsan -DQWEN3_TESTS=ON -DQWEN3_SANITIZE=thread
	$(BIN)/cmake --build build/tsan -j2 --target $(THREADED)
	$(BIN)/ctest --test-dir build/tsan --output-on-failure -R '^($(subst $(EMPTY) ,|,$(THREADED)))$$'
	$(NATIVE_BUILD) -B build/msan -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
	  -DQWEN3_TESTS=ON -DQWEN3_SANITIZE=memory
	$(BIN)/cmake --build build/msan -j2
	$(BIN)/ctest --test-dir build/msan --output-on-failure -j2

kernels: $(BIN)/python
	$(BIN)/cmake -S . -B build/plain -DQWEN3_PYTHON=OFF -DQWEN3_TESTS=ON
	$(BIN)/cmake --build build/plain -j2 --target test_kernels test_gpu_forward test_gpu_sample \
	  test_gpu_offload
	build/plain/tests/native/test_kernels 10000
	build/plain/tests/native/test_gpu_forward
	build/plain/tests/native/test_gpu_sample 1000
	build/plain/tests/native/test_gpu_offload

cuda: $(BIN)/python
	$(BIN)/python native/gpu/resources.py --check

fuzz: $(BIN)/python
	$(NATIVE_BUILD) -B build/fuzz -DCMAKE_C_COMPILER=clang -DQWEN3_FUZZ=ON \
	  -DQWEN3_SANITIZE=address,undefined,fuzzer-no-link
	$(BIN)/cmake --build build/fuzz -j2
	mkdir -p build/fuzz/corpus
	cat tests/data/tiny-0000?-of-00002.gguf > build/fuzz/tiny-shards
	build/fuzz/tests/native/fuzz_gguf build/fuzz/corpus -max_total_time=20 -print_final_stats=1 \
	  -seed_inputs=tests/data/tiny.gguf,tests/data/tiny-moe.gguf,build/fuzz/tiny-shards

ARM := aarch64-linux-gnu-gcc
arm: $(BIN)/python
	$(NATIVE_BUILD) -B build/arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_C_COMPILER=$(ARM) -DCMAKE_EXE_LINKER_FLAGS=-static -DQWEN3_TESTS=ON
	$(BIN)/cmake --build build/arm -j2 --target test_kernels test_pool test_probe
	qemu-aarch64 -cpu max build/arm/tests/native/test_kernels 300
	qemu-aarch64 -cpu neoverse-n1 build/arm/tests/native/test_kernels 30 # has no i8mm
	qemu-aarch64 -cpu max build/arm/tests/native/test_pool
	qemu-aarch64 -cpu max build/arm/tests/native/test_probe

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache

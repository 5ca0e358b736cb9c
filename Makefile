# make demo   the whole road on real images, in a few minutes
# make test   lint, types, import contracts and tests
# make test-avx2  the tests that touch arithmetic, as on a processor without AVX-512 and bfloat16
# make screenshots  the page and the report of the demo at three widths, into .screenshots; docs/report.png
# make docs   the documentation, into .site
# make bench  every benchmark at its cpu preset
PYTHON ?= python3
BIN := .venv/bin
# Where there is no GPU: PyTorch's own CPU wheels. PyPI's bring gigabytes of CUDA on Linux.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# The page is tested in a real browser, where there is one: Debian's chromium and chromium-driver.
BROWSER := $(and $(shell command -v chromium),$(shell command -v chromedriver))

.PHONY: demo test test-avx2 screenshots docs bench clean

demo: .venv/demo.stamp
	$(BIN)/gradstore demo

test: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	$(BIN)/pytest -n 2 $(if $(BROWSER),,-m 'not browser')
	@$(if $(BROWSER),,echo "left out: the tests of the page in a browser, which need chromium and chromedriver")

# Not torch.compile: told to imitate a smaller processor, torch 2.13 compiles kernels that compute
# losses of 10^13 in place of 1, on a plain model of two linear layers.
test-avx2: .venv/test.stamp
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/pytest -n 2 tests/indexer \
	  tests/gradstore/collect/engines tests/gradstore/collect/test_arithmetic.py \
	  tests/gradstore/collect/metrics tests/gradstore/collect/projectors tests/gradstore/collect/pipeline/test_estimate.py \
	  tests/query/test_searching.py tests/benchmarks/test_collect.py tests/benchmarks/test_search.py \
	  --deselect tests/gradstore/collect/engines/test_bare.py::test_a_compiled_model \
	  --deselect tests/gradstore/collect/engines/test_engines.py::test_a_compiled_model

screenshots: .venv/test.stamp
	test -f demo/report.html || $(BIN)/gradstore demo
	$(BIN)/python -m tests.support.screenshots demo .screenshots docs/report.png

docs: .venv/test.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: .venv/test.stamp
	for file in $$(grep -l '^PRESETS' benchmarks/*.py); do \
	  $(BIN)/python -m benchmarks.$$(basename $$file .py) --preset cpu || exit 1; done

clean:
	rm -rf .venv .site .screenshots demo

# torch first and alone, so that nothing else decides which build is taken.
.venv/torch.stamp: constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	@if command -v nvidia-smi >/dev/null || ! $(BIN)/pip install --dry-run --quiet --report - \
	  -c constraints.txt torch 2>/dev/null | grep -qE '"(nvidia|cuda)-'; \
	then echo "installing torch"; $(BIN)/pip install --quiet -c constraints.txt torch; \
	else echo "no GPU: installing torch's CPU build"; \
	  $(BIN)/pip install --quiet -c constraints.txt --index-url $(TORCH_INDEX) torch; fi
	@touch $@

.venv/demo.stamp: .venv/torch.stamp pyproject.toml
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(if $(shell command -v nvidia-smi),gpu,cpu),demo,serve]'
	@touch $@

.venv/test.stamp: .venv/demo.stamp
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(if $(shell command -v nvidia-smi),gpu,cpu),demo,bench,dev]'
	@touch $@

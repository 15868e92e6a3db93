# make demo    the demonstration; make demo DATA=DIR runs it on DIR/*/site.toml under DIR/study*.toml
# make test    the tests
# make check   format, lint, types, import contracts
# make bench   what a simulation costs beside the training, bfloat16 beside float32, updates and means beside Flower's
#              records, reading images beside pydicom and MONAI
# make bench-peers   what a simulation costs beside Flower's Ray engine, NVIDIA FLARE and apple/pfl, which it installs in .peers
# Each target makes the environment it needs: Python's own venv and pip, in .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check bench bench-peers clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[silo,dev]'
	touch $@

demo: setup
ifdef DATA
	$(BIN)/python scripts/demo.py --data '$(DATA)' --work demo-data
else
	rm -rf demo
	$(BIN)/python scripts/demo.py
endif

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

BENCHES := "bench_simulation.py --out scripts/results/bench_simulation.md" bench_training.py bench_exchange.py \
	"bench_ingest.py --with-gdcm"

bench: setup  # to the end, although one of them says that a bar was missed
	@missed=0; for each in $(BENCHES); do $(BIN)/python scripts/$$each || missed=1; done; exit $$missed

bench-peers: setup
	$(BIN)/python scripts/bench_peers.py

clean:
	rm -rf .venv .peers demo demo-data

# SPDX-License-Identifier: Apache-2.0
# Thin: each line calls the room that does the work.
#   make demo      a real guest resumes before its memory has arrived; DEMO="--machine microvm" or "--smp 2", QEMU=...;
#                  DEMO="--balloon" or "--virtio-mem": it gives memory away meanwhile, and takes it back;
#                  DEMO="--memory hugetlbfs" or "--memory memfd": it is restored on huge pages
#   make migrate-demo   a running guest moves, our way beside QEMU's own; MIGRATE="--version 10.0 --rounds 2" or "--short"
#   make test      every suite;   make check   the inner loop, under two minutes
#   make fuzz      each fuzzer for SECONDS (60), line coverage, planted bugs: tests/fuzz/README.md
#   make sanitize  the C tests under ASan, UBSan and TSan;   make mutants   the rules, broken one at a time
#   make soak      five VMs at once, each of another kind of memory, for some minutes; SOAK="--short", "--seed N"
#   make bench     ours against plain C, interleaved;   make nightly   all of these, and the long runs of each
# All of them set up what they need first: system packages, .venv, the C library. What is there already is kept.

PYTHON ?= python3
VENV := .venv/bin

.PHONY: demo migrate-demo test check soak bench mutants nightly lint fuzz sanitize generate native venv packages ghz browser lock clean
.NOTPARALLEL:

demo: native
	$(VENV)/python -m tests.e2e.demo $(DEMO)

migrate-demo: native
	$(VENV)/python -m tests.e2e.migrate_demo $(MIGRATE)

test: native ghz browser
	$(VENV)/python -m tests.suites

check: native
	$(VENV)/python -m tests.suites lint native unit house

soak: native
	$(VENV)/python -m tests.soak $(SOAK)

bench: native
	$(VENV)/python bench/run.py

# MUTANTS: a regular expression of names, or --tenth
mutants: native
	$(VENV)/python -m tests.mutants $(if $(MUTANTS),'$(MUTANTS)')

# What `make test` runs for 45 seconds, for longer.
NIGHTLY_SECONDS ?= 300
nightly: demo test mutants
	$(MAKE) --no-print-directory soak
	$(MAKE) --no-print-directory demo DEMO=--balloon
	$(MAKE) --no-print-directory demo DEMO=--virtio-mem
	$(VENV)/python -m tests.suites nightly
	$(MAKE) --no-print-directory -C native long
	$(MAKE) --no-print-directory fuzz SECONDS=$(NIGHTLY_SECONDS)
	$(MAKE) --no-print-directory bench

lint: venv
	$(VENV)/ruff check --quiet
	$(VENV)/mypy --no-error-summary

sanitize: packages
	@$(MAKE) --no-print-directory -C native sanitize

SECONDS ?= 60
fuzz: venv
	@.ci/system-packages $(PYTHON) fuzz
	$(VENV)/python -m tests.fuzz.run --seconds $(SECONDS)

# Writes everything that is generated: code from the contract, pages of docs/ from the C tables.
generate: native
	$(VENV)/python proto/generate.py
	$(MAKE) --no-print-directory -C native docs

# The C library, the shim, and the library once more as a Python module.
native: venv
	@$(MAKE) --no-print-directory -C native lib shim
	@$(MAKE) --no-print-directory build/extension
build/extension: native/build/libpageferry.a native/pageferry.h native/ext.py pyproject.toml .venv/installed
	@echo "native: building pageferry._native"
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	@mkdir -p $(@D) && touch $@

# The environment that requirements.lock describes.
venv: packages .venv/installed
.venv/installed: requirements.lock .ci/venv
	@.ci/venv $(PYTHON)

packages:
	@.ci/system-packages $(PYTHON)

ghz: build/bin/ghz
build/bin/ghz:
	@.ci/ghz

# 100 MB of packages: for whoever cannot have them, the tests that look at pages skip.
browser: packages
	@.ci/system-packages $(PYTHON) looks || echo "browser: none here: the tests that look at pages will skip"

# Pins anew from pyproject.toml. Commit the result.
lock:
	.ci/lock $(PYTHON)

clean:
	rm -rf build native/build

# SPDX-License-Identifier: Apache-2.0
# Thin: each line calls the room that does the work.

PYTHON ?= python3
VENV := .venv/bin

.PHONY: venv lock clean

# The environment that requirements.lock describes; done already: nothing happens.
venv: .venv/installed
.venv/installed: requirements.lock .ci/venv
	.ci/venv $(PYTHON)

# Pins anew from pyproject.toml. Commit the result.
lock:
	.ci/lock $(PYTHON)

clean:
	rm -rf build native/build

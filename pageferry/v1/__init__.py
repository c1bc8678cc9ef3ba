# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.
"""The contract as Python modules."""

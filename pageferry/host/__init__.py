# SPDX-License-Identifier: Apache-2.0
"""Speaking to a VMM on this host."""

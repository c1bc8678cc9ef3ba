# SPDX-License-Identifier: Apache-2.0
"""What both services share: words, the host's side of a hand-off, and what makes a process a service."""

__version__ = "0.1.0"

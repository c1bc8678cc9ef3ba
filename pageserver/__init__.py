# SPDX-License-Identifier: Apache-2.0
"""The page server: serves the pages of saved VMs, and of running ones that move away."""

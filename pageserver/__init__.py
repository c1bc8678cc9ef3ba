# SPDX-License-Identifier: Apache-2.0
"""The page server: serves the pages of saved VMs."""

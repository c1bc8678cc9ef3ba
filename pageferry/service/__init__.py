# SPDX-License-Identifier: Apache-2.0
"""What any of our processes needs to be a service."""

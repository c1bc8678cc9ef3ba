# SPDX-License-Identifier: Apache-2.0
"""The fault client: makes each page of a VM right at the moment the guest touches it."""

# SPDX-License-Identifier: Apache-2.0
"""``privguard audit``: audits that try to refute a claim."""

# SPDX-License-Identifier: Apache-2.0
"""privguard's own step and a user's model, put before the audits."""

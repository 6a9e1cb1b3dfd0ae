# SPDX-License-Identifier: Apache-2.0
"""Who may open a sealed file: keys, recipients, trust, and changes of access."""

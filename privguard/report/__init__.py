# SPDX-License-Identifier: Apache-2.0
"""Records → JSON, Markdown and a self-contained page."""

# SPDX-License-Identifier: Apache-2.0
"""Reading marked text: detection, messages, tracing, and the marks of other tools."""

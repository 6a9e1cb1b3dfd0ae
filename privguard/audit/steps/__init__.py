# SPDX-License-Identifier: Apache-2.0
"""The per-step audit: does an implementation of clip and noise do what its accountant is told?"""

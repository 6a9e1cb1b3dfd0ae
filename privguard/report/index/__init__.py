# SPDX-License-Identifier: Apache-2.0
"""All runs on one page: what each spent, what audits and signatures say of it, and what is left of each data set."""

# SPDX-License-Identifier: Apache-2.0
"""What an attacker learns: audits that try to refute a claim, and never confirm one.

* Against an ε: ``Design`` → coins → train →
  ``judge``.
* Against a model: ``run``, with reference models from
  ``train_references``.
* Against a private step: ``privguard.audit.steps.audit`` and ``privguard.audit.steps.checks``, and against
  privguard's own ``privguard.runs.audits.step``.
* Against a language model: ``privguard.audit.text.attacks`` and ``privguard.audit.text.extraction``.
"""

from privguard.audit.membership.audit import Assignment as Assignment
from privguard.audit.membership.audit import Attacked as Attacked
from privguard.audit.membership.audit import Examples as Examples
from privguard.audit.membership.audit import Membership as Membership
from privguard.audit.membership.audit import run as run
from privguard.audit.one_run.canary import Coins as Coins
from privguard.audit.one_run.design import Bound as Bound
from privguard.audit.one_run.design import Design as Design
from privguard.audit.one_run.design import Observed as Observed
from privguard.audit.one_run.design import OneRun as OneRun
from privguard.audit.one_run.design import judge as judge
from privguard.audit.references.reference import Place as Place
from privguard.audit.references.reference import References as References
from privguard.audit.references.reference import Schedule as Schedule
from privguard.audit.references.reference import draw_inclusion as draw_inclusion
from privguard.audit.references.reference import train_references as train_references

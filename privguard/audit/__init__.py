"""What an attacker learns: audits that try to refute a claim, and never confirm one.

* Against an ε: :class:`~privguard.audit.design.Design` → coins → train → :func:`~privguard.audit.design.judge`.
* Against a model: :func:`run`, with reference models from :func:`~privguard.audit.reference.train_references`.
* Against a private step: :mod:`privguard.audit.steps` and :mod:`privguard.audit.checks`, and against privguard's own
  :mod:`privguard.runs.audited_step`.
* Against a language model: :mod:`privguard.audit.language` and :mod:`privguard.audit.extraction`.
"""

from privguard.audit.canary import Coins as Coins
from privguard.audit.design import Bound as Bound
from privguard.audit.design import Design as Design
from privguard.audit.design import Observed as Observed
from privguard.audit.design import OneRun as OneRun
from privguard.audit.design import judge as judge
from privguard.audit.membership import Assignment as Assignment
from privguard.audit.membership import Attacked as Attacked
from privguard.audit.membership import Examples as Examples
from privguard.audit.membership import Membership as Membership
from privguard.audit.membership import run as run
from privguard.audit.reference import Place as Place
from privguard.audit.reference import References as References
from privguard.audit.reference import Schedule as Schedule
from privguard.audit.reference import draw_inclusion as draw_inclusion
from privguard.audit.reference import train_references as train_references

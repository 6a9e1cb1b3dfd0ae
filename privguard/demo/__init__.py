# SPDX-License-Identifier: Apache-2.0
"""The one place where the parts meet: the demonstration, from data to a report that can be read and checked.

``settings`` says what can be chosen, ``digits`` makes data, network and canaries, ``chapters`` holds what a team would
write for a model of its own, and ``story`` tells them in order.
"""

from privguard.demo.chapters import Theft as Theft
from privguard.demo.settings import Outline as Outline
from privguard.demo.settings import Settings as Settings
from privguard.demo.story import Demonstration as Demonstration
from privguard.demo.story import demo as demo

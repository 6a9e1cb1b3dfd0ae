"""The one place where the parts meet: the demonstration, from data to a report that can be read and checked.

``settings`` says what can be chosen, ``digits`` makes data, network and canaries, ``chapters`` holds what a team would
write for a model of its own, and ``story`` tells them in order.
"""

from privguard.run.chapters import Theft as Theft
from privguard.run.settings import Outline as Outline
from privguard.run.settings import Settings as Settings
from privguard.run.story import Demonstration as Demonstration
from privguard.run.story import demo as demo

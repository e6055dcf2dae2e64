"""Three domains with one skill in common: adding column by column.

It stands in all of them in the same words, and the demonstrator forgets carries in all of them.
Each domain has a slip of its own besides, half as likely. So a policy that learns to carry in one
domain may have learnt it for the others, which `suite` and `hard` cannot show: their domains share
nothing.
"""

from dfpo.tasks.shared import dialogue, math, science

__all__ = ["dialogue", "math", "science"]

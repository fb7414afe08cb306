"""One private step on a made-up batch: which layers of a network get a gradient per privacy unit, and which do not.

The step goes through the engine that trains. Each layer's gradients per unit are compared with those of a plain
backward pass for every unit alone, so that a layer is called exact because it was, not because it is on a list. What
stands in the way (batch norm above all) is named, set aside in a copy of the network, and the rest examined without it.
"""

from dpeq.dry_step.verdict import LayerVerdict, examine_model, require_trainable

__all__ = ["LayerVerdict", "examine_model", "require_trainable"]

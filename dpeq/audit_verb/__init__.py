"""The verb ``audit``: the price in time first, then the attack, its bound, and the picture of it."""

"""What the audits are tried on: Gaussian releases of many canaries, and small mechanisms that can be enumerated."""

import itertools

import numpy as np
from scipy.stats import binom

REPETITIONS = 200


def allowed_misses(repetitions=REPETITIONS, confidence=0.95):
    """More misses than this happen to a sound bound once in a thousand times."""
    return int(binom.ppf(0.999, repetitions, 1 - confidence))


def gaussian_canaries(random, canaries, mu):
    """Every canary in by a fair coin; the release shows mu + N(0, 1) for those that are in, N(0, 1) for others."""
    included = random.integers(0, 2, canaries).astype(bool)
    return random.normal(size=canaries) + mu * included, included


def loss_of_steps(random, runs, q, sigma, steps, member):
    """The best score there is for T subsampled Gaussian steps: the logarithm of the likelihood ratio."""
    z = sigma * random.normal(size=(runs, steps)) + (member & (random.random((runs, steps)) < q))
    return np.log1p(q * np.expm1((2 * z - 1) / (2 * sigma**2))).sum(axis=1)


class Channel:
    """A mechanism on m coins with finitely many outputs: ``law[coins]`` is the law of the output."""

    def __init__(self, law):
        self.law = np.asarray(law, dtype=float)  # one row per setting of the coins
        self.canaries = int(np.log2(len(self.law)))
        self.coins = np.array(list(itertools.product([0, 1], repeat=self.canaries)))

    def delta(self, epsilon):
        """The privacy profile, by enumeration: the worst pair of coins that differ in one place."""
        worst = 0.0
        for i, row in enumerate(self.law):
            for bit in range(self.canaries):
                other = self.law[i ^ (1 << (self.canaries - 1 - bit))]
                worst = max(worst, float(np.maximum(row - np.exp(epsilon) * other, 0.0).sum()))
        return worst

    def tail(self, guesses):
        """P[v or more of the guesses are right], v = 0, 1, ...; ``guesses[o]``: 1 in, 0 out, -1 open, for output o."""
        right = (self.coins[:, None, :] == np.asarray(guesses)[None]).sum(axis=2)
        count = int((np.asarray(guesses[0]) >= 0).sum())
        share = self.law / len(self.law)
        return [float(share[right >= v].sum()) for v in range(count + 1)]


def random_channel(random, canaries, outputs, sharpness):
    """Any law at all; a large ``sharpness`` makes outputs that tell much."""
    return Channel(random.dirichlet(np.full(outputs, 1 / sharpness), size=2**canaries))


def leaking_channel(canaries, epsilon, leak):
    """Randomised response of every coin; with probability ``leak`` all coins as they are."""
    coins = np.array(list(itertools.product([0, 1], repeat=canaries)))
    keep = 1 / (1 + np.exp(-epsilon))
    same = (coins[:, None, :] == coins[None]).sum(axis=2)
    response = keep**same * (1 - keep) ** (canaries - same)
    return Channel((1 - leak) * response + leak * np.eye(len(coins)))


def reading_guesses(channel, guesses, random):
    """For every output so many guesses, each the likelier value of its coin; which coins, the surest ones."""
    chosen = np.full((channel.law.shape[1], channel.canaries), -1)
    for output, column in enumerate(channel.law.T):
        weight = column + 1e-12 * random.random(len(column))
        chance = (weight[:, None] * channel.coins).sum(axis=0) / weight.sum()
        surest = np.argsort(-abs(chance - 0.5))[:guesses]
        chosen[output, surest] = chance[surest] > 0.5
    return chosen

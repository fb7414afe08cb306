"""A grid of runs on one machine: networks by epsilons by repetitions, each an ordinary run in a folder of its own."""

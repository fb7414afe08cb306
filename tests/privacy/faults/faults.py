"""Mistakes that private training is known for, what each breaks, and who must notice it."""

from __future__ import annotations

from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.training.state import TrainingState
from tests.privacy.faults import mechanism, surroundings
from tests.privacy.faults.planting import Fault

__all__ = ["FAULTS"]

FAULTS = (
    Fault(
        "no noise",
        "the clipped sum leaves as it is",
        mechanism.no_noise, "noise", "has not the plan's variance",
    ),
    Fault(
        "half the noise",
        "sigma is half of what the accountant was told",
        mechanism.half_the_noise, "noise", "has not the plan's variance",
    ),
    Fault(
        "noise drawn once per epoch",
        "the difference of two releases has no noise",
        mechanism.noise_of_an_epoch, "noise", "of two steps is alike",
    ),
    Fault(
        "noise scaled by the number of images",
        "the noise shrinks as the data grows, and tells its size",
        mechanism.noise_over_the_images, "noise", "of many units has not the plan's variance",
    ),
    Fault(
        "mean over the units that were sampled",
        "the normaliser, and with it the noise, depends on who was sampled",
        mechanism.mean_over_the_sampled, "noise", "of many units has not the plan's variance",
    ),
    Fault(
        "noise on rank 0 only, scaled for two ranks",
        "half of the variance is missing",
        mechanism.a_share_of_the_noise, "noise", "on two ranks has not the plan's variance",
    ),
    Fault(
        "one noise number for all weights",
        "differences of weights leave without noise",
        mechanism.one_number_for_all_weights, "noise", "is alike",
    ),
    Fault(
        "no clipping",
        "one unit moves the sum without bound",
        mechanism.no_clipping, "sensitivity", "moves the sum by more than C",
    ),
    Fault(
        "every layer clipped to the whole bound",
        "one unit moves the sum by C times the root of the number of layers",
        mechanism.clipping_by_layer, "sensitivity", "moves the sum by more than C",
    ),
    Fault(
        "mean over units clipped",
        "one unit turns the whole clipped mean",
        mechanism.clipping_the_mean, "sensitivity", "moves the sum by more than C",
    ),
    Fault(
        "views clipped one by one",
        "one unit moves the sum by K times C",
        mechanism.clipping_by_view, "sensitivity", "moves the sum by more than C",
    ),
    Fault(
        "a patient's images as units of their own",
        "a patient moves the sum by C for every image, and has a coin for each",
        mechanism.images_as_units, "sensitivity", "with two images moves the sum by more than C",
    ),
    Fault(
        "batches by shuffling",
        "units do not enter by independent coins, which the accountant counts on",
        surroundings.shuffling, "sampler", "the sizes of batches do not vary",
    ),
    Fault(
        "batches of random sizes without replacement",
        "who was in a step is not in the next ones",
        surroundings.without_replacement, "sampler", "who was in a step decides who is in a later one",
    ),
    Fault(
        "rate from the size of the data",
        "the rate tells how many there are, and is not the accountant's",
        surroundings.rate_of_the_data, "sampler", "than by the plan's rate",
    ),
    Fault(
        "the same coins in every step",
        "a unit is in every step or in none, and nothing is gained by sampling",
        surroundings.same_coins_in_every_step, "sampler", "more or less often than by the plan's rate",
    ),
    Fault(
        "weighted sampling",
        "units of a rare class enter more often than was accounted for",
        surroundings.weighted, "sampler", "a class enters more or less often",
    ),
    Fault(
        "a batch norm",
        "statistics of the batch reach every unit's gradient, and buffers leave without noise",
        surroundings.network(surroundings.WithBatchNorm), "structure", "batch norm mixes the units of a batch",
    ),
    Fault(
        "a norm over the batch, written by hand",
        "a unit reaches the gradients of all others",
        surroundings.network(surroundings.ByHand), "sensitivity", "moves the sum by more than C",
    ),
    Fault(
        "a running mean in a frozen parameter",
        "it leaves with the weights, without noise",
        surroundings.network(surroundings.Remembering), "structure", "'mean'",
    ),
    Fault(
        "images scaled by statistics of the data set",
        "one image changes those of all others before they are clipped",
        surroundings.statistics_of_the_data, "structure", "changes with the images of others",
    ),
    Fault(
        "empty steps skipped",
        "weights that stand still tell that nobody was sampled",
        surroundings.empty_steps_skipped, "sampler", "a step whose sample is empty releases nothing",
    ),
    Fault(
        "ledger written after the step",
        "a crash in between forgets what was released",
        surroundings.ledger_after(TrainingState, "apply"), "ledger",
        "changes the weights before the ledger has its line",
    ),
    Fault(
        "ledger written after the gradients",
        "a unit that makes the step crash is tried again with other coins, until it is not in",
        surroundings.ledger_after(PlanOptimizer, "take_sum"), "ledger",
        "looks at the data before the ledger has its line",
    ),
    Fault(
        "resume that forgets the ledger",
        "what was released before the crash is spent again",
        surroundings.forgetful_resume, "ledger", "the ledger was cut or replaced",
    ),
    Fault(
        "the same, with the check of the checkpoint taken out",
        "as above; the weights of forgotten steps go on under a new ledger",
        surroundings.forgetful_resume_unchecked, "ledger", "has released more steps than its ledger holds",
    ),
    Fault(
        "resume that repeats steps under a fresh key",
        "steps since the checkpoint are released twice and spent once",
        surroundings.repeating_resume, "ledger", "has released more steps than its ledger holds",
    ),
)  # fmt: skip

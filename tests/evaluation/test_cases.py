import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from dpeq.data.images import ImageSet
from dpeq.evaluation.bootstrap import resamples
from dpeq.evaluation.cases import cases_of
from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.evaluation.predict import predict_cases

UNITS = torch.tensor([1, 0, 1, 2, 1])


def split(labels: list[int], cases: list[int] | None = None) -> ImageSet:
    return ImageSet(
        torch.randn(5, 1, 4, 4),
        torch.tensor(labels),
        UNITS,
        3,
        ("a", "b"),
        "test",
        "patient",
        None if cases is None else torch.tensor(cases),
    )


def test_patients_with_one_label_each_are_the_cases():
    cases = cases_of(split([1, 0, 1, 0, 1], cases=[0, 1, 0, 2, 3]))
    assert cases.of_images.tolist() == UNITS.tolist()
    assert cases.labels.tolist() == [0, 1, 0]
    assert cases.owners is None


def test_images_are_the_cases_where_a_patient_has_several_labels():
    cases = cases_of(split([1, 0, 0, 0, 1]))
    assert cases.of_images.tolist() == [0, 1, 2, 3, 4]
    assert cases.labels.tolist() == [1, 0, 0, 0, 1]
    assert cases.owners is not None
    assert cases.owners.tolist() == UNITS.tolist()


def test_slices_of_one_volume_are_one_case():
    cases = cases_of(split([1, 0, 0, 0, 1], cases=[0, 1, 2, 3, 0]))
    assert cases.of_images.tolist() == [0, 1, 2, 3, 0]
    assert cases.labels.tolist() == [1, 0, 0, 0]
    assert cases.owners is not None
    assert cases.owners.tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize("cases", [[0, 1, 0, 2, 3], [0, 0, 1, 2, 1], [0, 1, 5, 2, 3]], ids=["label", "unit", "gap"])
def test_a_case_has_one_label_and_one_unit(cases):
    with pytest.raises(ValueError, match=r"cases? of the test split"):
        split([1, 0, 0, 0, 1], cases)


def test_a_score_is_the_mean_over_the_images_of_a_case():
    images = split([0, 0, 0, 0, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).train()
    scores = predict_cases(model, images, cases_of(images), device=torch.device("cpu"), batch=2)
    with torch.no_grad():
        each = model(images.images).double().softmax(1)
    for unit in range(3):
        torch.testing.assert_close(scores[unit], each[unit == UNITS].mean(0), atol=1e-7, rtol=0)
    torch.testing.assert_close(scores.sum(1), torch.ones(3, dtype=torch.float64))


def patients(n: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of a patient have nearly the patient's score and the patient's label, but for one patient."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 2, n), images)
    labels[0] = 1 - labels[1]
    score = np.repeat(rng.normal(size=n), images) + 0.8 * labels + 0.01 * rng.normal(size=n * images)
    score = 1 / (1 + np.exp(-score))
    return np.stack([1 - score, score], axis=1), labels, np.repeat(np.arange(n), images)


def test_cases_of_one_patient_are_drawn_together():
    proba, labels, owners = patients(60, 6, seed=0)
    together = evaluate_predictions(proba, labels, ("a", "b"), owners=owners)
    apart = evaluate_predictions(proba, labels, ("a", "b"))
    assert together["auc"]["value"] == apart["auc"]["value"]

    def width(out):
        return out["auc"]["high"] - out["auc"]["low"]

    assert width(together) > 2 * width(apart), "six images of a patient are no six patients (sqrt(6) = 2.4)"
    assert together["bootstrap"]["owners"] == 60
    assert "stratified_by" not in together["bootstrap"]


def test_the_cluster_bootstrap_equals_a_loop_over_resampled_patients():
    proba, labels, owners = patients(12, 3, seed=1)
    out = evaluate_predictions(proba, labels, ("a", "b"), owners=owners * 7 + 3, n_bootstrap=200, seed=4)
    drawn = np.concatenate(list(resamples(labels, owners, 200, 4)))
    assert drawn.shape == (200, 36)
    auc, recall = [], []
    for row in drawn:
        assert all(len(set(row[owners == o])) == 1 for o in range(12))
        assert row.sum() == 36
        chosen = np.repeat(np.arange(36), row.astype(int))
        auc.append(roc_auc_score(labels[chosen], proba[chosen, 1]))
        recall.append(np.mean((proba[chosen, 1] > 0.5)[labels[chosen] == 1]))
    assert [out["auc"]["low"], out["auc"]["high"]] == pytest.approx(np.quantile(auc, [0.025, 0.975]))
    assert [out["recall"][1]["low"], out["recall"][1]["high"]] == pytest.approx(np.quantile(recall, [0.025, 0.975]))


def test_a_class_of_a_single_patient_is_in_every_resample():
    proba, labels, owners = patients(8, 2, seed=2)
    labels[:] = 0
    labels[4:6] = 1
    drawn = np.concatenate(list(resamples(labels, owners, 500, 0)))
    assert len(drawn) == 500
    assert (drawn[:, 4:6] > 0).all()
    assert evaluate_predictions(proba, labels, ("a", "b"), owners=owners, n_bootstrap=100)["auc"]["low"] >= 0


def test_owners_of_one_case_each_change_nothing():
    proba, labels, _ = patients(20, 1, seed=3)
    apart = evaluate_predictions(proba, labels, ("a", "b"), n_bootstrap=50)
    assert evaluate_predictions(proba, labels, ("a", "b"), owners=np.arange(20), n_bootstrap=50) == apart
    with pytest.raises(ValueError, match="owners"):
        evaluate_predictions(proba, labels, ("a", "b"), owners=np.arange(19), n_bootstrap=50)

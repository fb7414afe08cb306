import torch
from torch import nn

from dpeq.data.images import ImageSet
from dpeq.evaluation.predict import predict_units


def test_a_patients_score_is_the_mean_over_the_patients_images():
    units = torch.tensor([1, 0, 1, 2, 1])
    images = ImageSet(
        torch.randn(5, 1, 4, 4), torch.zeros(5, dtype=torch.int64), units, 3, ("a", "b"), "test", "patient"
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).train()
    scores = predict_units(model, images, device=torch.device("cpu"), batch=2)
    with torch.no_grad():
        each = model(images.images).double().softmax(1)
    for unit in range(3):
        torch.testing.assert_close(scores[unit], each[units == unit].mean(0), atol=1e-7, rtol=0)
    torch.testing.assert_close(scores.sum(1), torch.ones(3, dtype=torch.float64))

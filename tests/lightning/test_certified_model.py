"""Certified predictions of a trained network agree with poisoned trainings."""

import torch
from torch import nn

from agt_lightning import BoundedAdversary, CertifiedTraining


def test_poisoned_trainings_predict_what_is_certified(fit, loader, classifier):
    """End to end: runs with flipped labels and moved features agree with every certified prediction."""
    data = list(loader("class", size=24, batch_size=12))
    torch.manual_seed(0)
    module = classifier()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.02, nu=1, q=0))
    fit(module, loader("class", size=24, batch_size=12), certified, max_epochs=3)
    x = torch.cat([batch[0] for batch in data])
    model = certified.certified_model(module)
    answer, out = model.certify(x), model.bound_forward(x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        twin = classifier()
        twin.load_state_dict(start)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        for features, labels in [*data] * 3:
            features, labels = features.clone(), labels.clone()
            row = int(torch.randint(0, 12, (), generator=generator))
            features[row] += 0.02 * torch.randn(3, generator=generator).sign()
            labels[row] = torch.randint(0, 3, (), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin(features), labels).backward()
            optimizer.step()
        assert certified.bounds.contains(twin)
        logits = twin(x).detach()
        assert out.contains(logits, 1e-5)
        assert torch.equal(logits.argmax(dim=1)[answer.certified], answer.label[answer.certified])
    assert answer.certified.any()

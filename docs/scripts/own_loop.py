"""Soups by hand in a plain training loop: one copy trains the dense phase, three train after each pruning."""

import copy

import torch

import sparsekit


def train(model, state, until):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    pruner = sparsekit.Pruner(model, optimizer, **options)
    pruner.load_state_dict(state)
    for batch in torch.randint(len(x), (until - pruner.done, 50)):
        optimizer.param_groups[0]["lr"] = 0.5 * pruner.learning_rate
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.state_dict(), pruner.state_dict()


x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] * x[:, 1] > 0).long()
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
options = {"method": "imp", "sparsity": 0.9, "epochs": 20, "steps_per_epoch": 40}
parent = sparsekit.Pruner(model, torch.optim.SGD(model.parameters()), **options)
while parent.prune_if_due():  # one copy trains the dense phase, three each round
    count = 3 if parent.done else 1
    replicas = [train(copy.deepcopy(model), parent.state_dict(), parent.due_at) for _ in range(count)]
    model.load_state_dict(parent.soup([weights for weights, _ in replicas]))
    parent.load_state_dict(replicas[0][1])
parent.finish()
print((model(x).argmax(1) == y).float().mean().item(), parent.sparsity)

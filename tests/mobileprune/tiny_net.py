"""A small residual network as a user might hand it over: functional, with a factory and its own normalisation."""

import torch.nn.functional as F
from torch import nn

MEAN = (0.3, 0.3, 0.3)
STD = (0.4, 0.4, 0.4)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self, blocks, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.first = nn.Sequential(*(Block(16) for _ in range(blocks)))
        self.down = nn.Conv2d(16, 32, 3, 2, 1)
        self.second = nn.Sequential(*(Block(32) for _ in range(blocks)))
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        x = self.second(F.relu(self.down(self.first(F.relu(self.stem(x))))))
        return self.head(x.mean((2, 3)))


def tiny(blocks=2, classes=10):
    return Net(blocks, classes)


def tiny_without_classes(blocks=2):
    return Net(blocks, 7)


def broken(classes=10):
    raise RuntimeError("the weights are on another machine")

"""The served function written a second time, plainly, in float64 PyTorch: crops, means, network, views.

Shares no code with the graph builder or with the network that is trained.
"""

import numpy as np
import torch
import torch.nn.functional as F

CELLS = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
"""Where the dense view's windows begin in conv5: row, column."""


def lrn(x, norm, towers):
    """The formula of section 3.3, channel by channel."""
    parts = []
    for part in x.chunk(towers, 1):
        channels, half = part.shape[1], norm.size // 2
        total = [part[:, max(0, c - half) : c + half + 1].square().sum(1) for c in range(channels)]
        parts.append(part * (norm.k + norm.alpha * torch.stack(total, 1)) ** -norm.beta)
    return torch.cat(parts, 1)


def spatial_norm(x, norm):
    columns = F.unfold(x.square(), norm.size, padding=norm.size // 2)
    total = columns.view(*x.shape[:2], norm.size**2, -1).sum(2).view(x.shape)
    return x * (norm.k + norm.alpha * total) ** -norm.beta


def steps(x, variant, names):
    for name in names:
        if name == "relu":
            x = x.relu()
        elif name == "pool":
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        elif name == "lrn":
            x = lrn(x, variant.lrn, 2 if variant.lrn_per_tower else 1)
        elif name == "spatial_norm" and variant.spatial_norm:
            x = spatial_norm(x, variant.spatial_norm)
    return x


def pool5(x, variant, tensors, layer5=None):
    """Crops minus mean, (N, 3, crop, crop) in the variant's channel order -> pool5; ``layer5`` replaces its
    steps."""
    before, after = variant.conv1_padding
    x = F.pad(x, (before, after, before, after))
    behind = [variant.layer1, variant.layer2, ("relu",), ("relu",), layer5 or variant.layer5]
    for i in range(1, 6):
        weight, bias = tensors[f"conv{i}.weight"], tensors[f"conv{i}.bias"]
        padding, stride = (0, 4) if i == 1 else (2 if i == 2 else 1, 1)
        x = F.conv2d(x, weight, bias, stride=stride, padding=padding, groups=variant.groups[i - 1])
        x = steps(x, variant, behind[i - 1])
    return x


def head(pooled, tensors):
    """pool5 -> logits, features."""
    x = F.linear(pooled.flatten(1), tensors["fc6.weight"], tensors["fc6.bias"]).relu()
    features = F.linear(x, tensors["fc7.weight"], tensors["fc7.bias"]).relu()
    return F.linear(features, tensors["fc8.weight"], tensors["fc8.bias"]), features


def doubles(weights):
    return {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in weights.tensors.items()}


def crop_input(photo, weights, top, left, mirror=False):
    """One exact view of a (256, 256, 3) photo: cropped, mirrored, minus the mean's unmirrored centre crop."""
    variant, mean = weights.variant, weights.mean.astype(np.float64)
    crop, middle = variant.crop, (256 - variant.crop) // 2
    view = np.asarray(photo, np.float64)[top : top + crop, left : left + crop]
    view = (view[:, ::-1] if mirror else view).transpose(2, 0, 1)
    centre = slice(middle, middle + crop)
    view = view - (mean[:, None, None] if mean.ndim == 1 else mean[:, centre, centre])
    if weights.std is not None:
        view = view / weights.std[:, None, None]
    if variant.channel_order == "BGR":
        view = view[::-1]
    return torch.from_numpy(view.copy())


def classify(photo, weights, view="center", temperature=1.0):
    """One photo -> (probabilities, features) in float64, one crop after another."""
    variant, tensors = weights.variant, doubles(weights)
    far, middle = 256 - variant.crop, (256 - variant.crop) // 2
    centre = (middle, middle)
    places = [centre] if view == "center" else [(0, 0), (0, far), (far, 0), (far, far), centre]
    probabilities, features = [], None
    for mirror in (False,) if view == "center" else (False, True):
        for top, left in places:
            x = crop_input(photo, weights, top, left, mirror)[None]
            logits, hidden = head(pool5(x, variant, tensors), tensors)
            probabilities.append((logits / temperature).softmax(1)[0])
            if (top, left) == centre and not mirror:
                features = hidden[0]
    return torch.stack(probabilities).mean(0).numpy(), features.numpy()

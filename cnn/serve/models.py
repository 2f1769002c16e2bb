"""Which networks there are to answer, and what each says of itself: for GET /v1/models and the page's /models."""

import sys
from functools import cache
from typing import Any

from cnn import checkpoint
from cnn.checkpoint import BOX, Checkpoint
from cnn.classifier import Classifier
from cnn.serve.connection import Unavailable
from cnn.serve.glass import Network
from cnn.serve.remote import RemoteClassifier, WithFallback
from cnn.serve.service import Service


def listed(network: Network) -> list[dict[str, Any]]:
    """What there is where `network` is, the one that answers marked as the default. Raises Unavailable; ValueError if
    it is away and there is none here."""
    if isinstance(network, RemoteClassifier):
        return network.models()
    if isinstance(network, WithFallback):
        try:
            return listed(network.first)
        except Unavailable:
            return listed(network.local())
    classifier = network.classifier if isinstance(network, Service) else network
    if not isinstance(classifier, Classifier):
        raise Unavailable("the network elsewhere does not say what it is")
    path = classifier.path.resolve() if classifier.path else None
    name = path.parent.name if path and BOX.resolve() in path.parents else "given"
    others = [told for told in boxed() if told["name"] != name]
    return [about(name, classifier.checkpoint, default=True), *others]


def about(name: str, weights: Checkpoint, *, default: bool) -> dict[str, Any]:
    """One network; `default`: it answers where none is named."""
    return {
        "name": name,
        "default": default,
        "network": weights.network,
        "parameters": weights.parameter_count,
        "sample_rate": weights.mel.sample_rate,
        "classes": list(weights.labels),
        "accuracy": weights.metrics.get("accuracy"),
        "fold": weights.metrics.get("fold"),
        "data": str(weights.provenance.get("data", "not stated")),
        "licence": str(weights.provenance.get("licence", "not stated")),
    }


@cache
def boxed() -> list[dict[str, Any]]:
    """The networks in the box; of one that cannot be read only the log knows."""
    told = []
    for path in checkpoint.in_box():
        try:
            weights = checkpoint.load(path)
        except checkpoint.CheckpointError as error:
            print(f"Not listed: {error}", file=sys.stderr)
            continue
        told.append(about(path.parent.name, weights, default=False))
    return told

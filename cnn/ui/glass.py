"""How the page comes to look into its network, be it here or elsewhere: what is shown is all of one network, the one
that named the sound in hand."""

from functools import lru_cache

from cnn.classifier import Classifier, Prediction
from cnn.serve.answers import Heard
from cnn.serve.connection import Unavailable
from cnn.serve.glass import Glass, LocalGlass, Network, NotAtHand
from cnn.serve.remote import WithFallback
from cnn.serve.service import Service


def view(network: Network, prediction: Prediction) -> tuple[Glass, Prediction]:
    """To look into the network that `prediction` is of, and `prediction`. If it has gone away and there is a network
    here, that one has heard the sound and is looked into instead; `device` of its Prediction says so.

    Raises NotAtHand; AudioError and Busy as predict does.
    """
    heard = prediction if isinstance(prediction, Heard) else None
    try:
        seen = _into(heard.by if heard else network, heard.weights if heard else "")
        taps = {tap for part in seen.anatomy().parts if part.kind != "gate" for tap in part.taps}
        if prediction.labels and not taps <= prediction.maps.keys():
            raise NotAtHand(_ELSEWHERE, "the network elsewhere sent maps of other layers than it has")
        return seen, prediction
    except NotAtHand as away:
        if not isinstance(network, WithFallback):
            raise
        try:
            instead = network.instead(prediction.clip, away.reason, "all")
        except Unavailable as gone:
            raise NotAtHand(f"No network can be looked into: {gone}.", str(gone)) from gone
        return _into(instead.by), instead


def glass(network: Network) -> Glass:
    """To look into `network` with no sound in hand. Raises NotAtHand for one that is elsewhere and cannot be."""
    return into(network)[0]


def into(network: Network) -> tuple[Glass, str]:
    """As `glass`, and why it is the network here if that takes the place of one elsewhere."""
    if not isinstance(network, WithFallback):
        return _into(network), ""
    try:
        seen = _into(network.first)
        seen.anatomy()
        return seen, ""
    except NotAtHand as away:
        try:
            return _into(network.local()), away.reason
        except ValueError:  # CheckpointError is one
            raise away from None


_ELSEWHERE = (
    "This page's network runs on another server, which names sounds but does not let visitors look inside it. "
    "Load a best_model.pth on the Inside tab, or run the app on your own computer."
)


def _into(network: Network, weights: str = "") -> Glass:
    """Raises NotAtHand."""
    if isinstance(network, Service | Classifier) or weights:
        return _kept(network, weights)
    return _opened(network, weights)


def _opened(network: Network, weights: str) -> Glass:
    if isinstance(network, Service):
        return LocalGlass(network.classifier, network)
    if isinstance(network, Classifier):
        return LocalGlass(network)
    elsewhere = getattr(network, "glass", None)
    if elsewhere is None:
        raise NotAtHand(_ELSEWHERE, "the network elsewhere names sounds only")
    return elsewhere(weights)


_kept = lru_cache(maxsize=8)(_opened)  # what was once asked of one and the same network need not be asked again

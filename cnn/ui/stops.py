"""What is said at each stop inside the network, in the words of a good teacher, and the guided walk through all."""

from dataclasses import dataclass

from cnn.anatomy import Anatomy, Part
from cnn.labels import spoken
from cnn.mel import MelConfig
from cnn.pictures import seconds_in_words

PICTURE, HEAD, PYRAMID = "picture", "head", "fpn"  # stops that are no stage with blocks


@dataclass(frozen=True)
class Step:
    """One stop of the walk: what to open, and what to do there."""

    stop: str  # a stage, or one of the above
    task: str
    strongest: bool = False  # also open the channel that counts most for the name


def stages(anatomy: Anatomy) -> list[str]:
    """'layer1', 'layer2', ... as many as there are."""
    return list(dict.fromkeys(part.stage for part in anatomy.parts if part.kind == "block"))


def part_of(anatomy: Anatomy, tap: str) -> Part:
    """The one whose output the tap is."""
    return next(part for part in anatomy.parts if tap in part.taps)


def stop_title(stop: str, anatomy: Anatomy) -> str:
    """'layer2: shapes'."""
    layers = stages(anatomy)
    if stop in layers:
        what = "patterns" if stop == layers[0] else "meanings" if stop == layers[-1] else "shapes"
        return f"{stop}: {what}"
    known = {PICTURE: "The picture", "conv1": "conv1: first filters", PYRAMID: "The pyramid", HEAD: "The name"}
    if stop in known:
        return known[stop]
    layer, block, *gate = stop.split(".")
    if layer == PYRAMID:
        return f"The pyramid, level {block.removeprefix('p')}"
    number = int(block.removeprefix("block")) + 1
    return f"Gates of block {number} in {layer}" if gate else f"Block {number} of {layer}"


def stop_words(stop: str, anatomy: Anatomy, mel: MelConfig, classes: int) -> str:
    """Two or three sentences."""
    layers, (bins, frames) = stages(anatomy), anatomy.picture
    hop = mel.hop_length / mel.sample_rate
    if stop == PICTURE:
        return (
            f"{seconds_in_words(mel.seconds)} of sound become a picture: {bins} rows of pitch, low notes at the foot, "
            f"and {frames} columns of time, one every {1000 * hop:.3g} ms. Bright is loud. Whatever the network finds "
            "out about your sound, it finds out from this picture alone."
        )
    if stop == "conv1":
        channels, field = part_of(anatomy, "conv1").shape[0], anatomy.fields["conv1"]
        size = field.size - field.stride  # without what the pooling adds
        return (
            f"{channels} filters, each a pattern of {size} × {size} cells, slide over the picture and answer wherever "
            "they find their pattern: a sudden start, a steady hum, a rising tone. Of each neighbourhood only the "
            f"strongest answer is kept: one cell for every {field.stride} of the picture, both ways. One filter's "
            f"answers are called a channel.{_apart(anatomy, channels)}"
        )
    if stop == HEAD:
        last = "every level of the pyramid" if _has_pyramid(anatomy) else layers[-1]
        hidden = "" if _is_linear(anatomy) else " Here two more small layers stand in between."
        return (
            f"Of every channel of {last} only the mean is left: no place, no time. Each of the {classes} names has its "
            f"own weight for every mean; multiplied and added up they are the name's score, its logit.{hidden} Softmax "
            "turns the logits into probabilities that add up to 100 %."
        )
    if stop.split(".")[0] == PYRAMID:
        return (
            "The deep layers know what, the early ones know where. The pyramid brings both together: each level adds "
            "the coarser one, enlarged, to its own layer. The name is read from the means of all its levels."
        )
    if stop in layers:
        return _layer_words(stop, anatomy, mel)
    if stop.endswith(".se"):
        return (
            "Squeeze and excitation: the block looks at the mean of each of its channels and decides how far each one "
            "may come through, from 0 (shut) to 1 (open). So the same block listens differently to different sounds."
        )
    seen = "all channels" if anatomy.groups == 1 else "all channels of their own network"
    return (
        f"Two convolutions look at 3 × 3 cells of {seen} at once. What they find is added to what came in (the "
        "shortcut), so nothing gets lost on a long way down. ReLU then sets all that is below zero to zero."
    )


def _apart(anatomy: Anatomy, channels: int) -> str:
    """What to know of channels that belong to several networks."""
    if anatomy.groups == 1:
        return ""
    return (
        f" Here {anatomy.groups} networks stand side by side: none sees a channel of another, and only what they say "
        f"in the end is added up. The first {channels // anatomy.groups} channels belong to the first, and so on."
    )


def _layer_words(stop: str, anatomy: Anatomy, mel: MelConfig) -> str:
    layers = stages(anatomy)
    tap, hop = stop, mel.hop_length / mel.sample_rate
    field = anatomy.fields[tap]
    channels, f, t = part_of(anatomy, tap).shape
    cell = seconds_in_words(field.stride * hop)
    whole = field.size >= 2 * anatomy.picture[1]  # then even a cell at the edge sees all
    sees = "sees the whole window" if whole else f"sees {seconds_in_words(min(field.size * hop, mel.seconds))}"
    if stop == layers[0]:
        return (
            "As fine as conv1: what its filters find is put together to larger patterns. Each block adds something to "
            f"what it was given. One cell stands for {cell} and {sees}."
        )
    if stop == layers[-1]:
        return (
            f"Coarse in place, rich in meaning: {f} × {t} cells, but {channels} channels. A channel here answers to "
            f"whole events, such as a bark or a stretch of rain. One cell stands for {cell} and {sees}."
        )
    return (
        f"Half as fine in time and in pitch, and {channels} channels: the network gives up places and gains meanings. "
        f"Patterns join to shapes. One cell stands for {cell} and {sees}."
    )


def _has_pyramid(anatomy: Anatomy) -> bool:
    return any(part.kind == "pyramid" for part in anatomy.parts)


def _is_linear(anatomy: Anatomy) -> bool:
    """Is the head one linear layer? Then it has as many weights as inputs times names, and a bias each."""
    head = anatomy.parts[-1]
    *_, before = (part for part in anatomy.parts if part.kind in ("block", "pyramid"))
    levels = sum(part.kind == "pyramid" for part in anatomy.parts) or 1
    return head.parameters == (before.shape[0] * levels + 1) * head.shape[0]


def walk(anatomy: Anatomy, label: str) -> tuple[Step, ...]:
    """Five minutes through one sound, from the picture to the name."""
    layers, name = stages(anatomy), spoken(label)
    steps = [
        Step(PICTURE, f"Play the sound and follow the line over the picture. Where does what you would call the {name} "
             "begin and end? Keep that stretch in mind: we shall look for it in every layer."),
        Step("conv1", "Go over the kernels below the maps: some are wide, some tall, some slanted. The opened "
             "channel counts most for the name. Does it mark beginnings, or what goes on and on?", True),
        Step(layers[0], "Click a bright cell of the large map: the frame on the picture shows all that this cell can "
             "see. Try another one, then play: the line tells whether the cell lights up with the sound."),
    ]  # fmt: skip
    if len(layers) > 2:
        steps.append(
            Step(layers[len(layers) // 2 - 1], "Compare the channels below: each looks for something else. Set the "
                 "colours to one scale for the layer and see which are really bright and which only looked so.", True)
        )  # fmt: skip
        steps.append(
            Step(layers[-2], "Click a cell again. The frame has grown: the deeper the layer, the more of the sound "
                 "one cell sees. Switch the class above the channels to the second name: other channels count.")
        )  # fmt: skip
    if any(part.kind == "gate" for part in anatomy.parts):
        gate = [part.name for part in anatomy.parts if part.kind == "gate"][-1]
        steps.append(Step(gate, "Which channels does this sound open further than most sounds do, and which does it "
                          "shut? Hear another sound later and compare."))  # fmt: skip
    steps.append(
        Step(layers[-1], f"Only a few cells are left, and the channel shown counts most for {name}. Play the moments "
             "that excite it most in other clips: what do they have in common?", True)
    )  # fmt: skip
    if _has_pyramid(anatomy):
        steps.append(Step(PYRAMID, "Compare the levels: the coarse ones say what, the fine ones say where."))
    steps.append(
        Step(HEAD, f"The whole way was for this: one number per channel. See which of them speak for {name} "
             "and which against it. Then hear something of your own and walk again.")
    )  # fmt: skip
    return tuple(steps)

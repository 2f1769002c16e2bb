"""Class names, in the spelling of ESC-50's csv and in the order of its `target` column."""

ESC50: tuple[str, ...] = tuple(
    """
    dog rooster pig cow frog cat hen insects sheep crow rain sea_waves crackling_fire crickets chirping_birds
    water_drops wind pouring_water toilet_flush thunderstorm crying_baby sneezing clapping breathing coughing
    footsteps laughing brushing_teeth snoring drinking_sipping door_wood_knock mouse_click keyboard_typing
    door_wood_creaks can_opening washing_machine vacuum_cleaner clock_alarm clock_tick glass_breaking helicopter
    chainsaw siren car_horn engine train church_bells airplane fireworks hand_saw
    """.split()
)
ESC10: frozenset[str] = frozenset(
    "chainsaw clock_tick crackling_fire crying_baby dog helicopter rain rooster sea_waves sneezing".split()
)


def spoken(label: str) -> str:
    """The name as people write it: 'crying_baby' -> 'crying baby'."""
    return label.replace("_", " ")

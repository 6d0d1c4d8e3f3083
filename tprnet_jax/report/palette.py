"""The colours of every picture and page, which colour-blind readers tell apart.

They are those of Okabe and Ito ("Color Universal Design", 2008). Errors keep the paper's sense, red
for false positives and blue for false negatives.
"""

ORANGE, SKY_BLUE, BLUISH_GREEN, YELLOW, BLUE, VERMILLION, REDDISH_PURPLE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

TRUE_POSITIVE = (255, 255, 255)
FALSE_POSITIVE = VERMILLION
FALSE_NEGATIVE = SKY_BLUE
TRUTH = SKY_BLUE  # What of it is not found is a false negative.
PREDICTION = ORANGE
# Lines and stages; a training has seven at most. On white, yellow would hardly be seen.
SERIES = (BLUE, ORANGE, BLUISH_GREEN, VERMILLION, REDDISH_PURPLE, SKY_BLUE, (119, 119, 119))

_NAMED = {
    "true-positive": TRUE_POSITIVE,
    "false-positive": FALSE_POSITIVE,
    "false-negative": FALSE_NEGATIVE,
    "truth": TRUTH,
    "prediction": PREDICTION,
    **{f"series-{number}": colour for number, colour in enumerate(SERIES)},
}


def as_hex(colour: tuple[int, int, int]) -> str:
    """A colour as Matplotlib and CSS write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def css() -> str:
    """The rule that gives a page these colours: `--false-positive`, `--series-0` and so on."""
    colours = (f"--{name}:{as_hex(colour)};" for name, colour in _NAMED.items())
    return ":root{" + "".join(colours) + "}"

"""Wrapping: lines of at most so many letters."""


def wrap(text: str, width: int) -> list[str]:
    """The text's words in lines of at most `width` letters; a longer word keeps its own line."""
    lines: list[str] = []
    for word in text.split():
        # TODO: count wide letters twice.
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines

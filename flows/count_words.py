"""Count the words of a text: the smallest Method, with a file as input and a table as output."""

import re
from collections import Counter
from pathlib import Path

from prefect_executions import InputFile, current_execution, method

# The last paragraph of Charles Darwin's On the Origin of Species (first edition, London 1859), in the public domain.
ENTANGLED_BANK = InputFile(Path(__file__).parent / "data" / "entangled_bank.txt")

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")  # letters of any script; don't and well-known are single words


def words_in(text: str) -> Counter[str]:
    """Return how often each word occurs in *text*, ignoring case."""
    return Counter(WORD.findall(text.lower()))


@method(version="1.0.0", title="Count words", keywords=["text", "statistics"], type="Analysis")
def count_words(text: InputFile = ENTANGLED_BANK, most: int = 20) -> int:
    """Count the words of a text and list the most frequent ones.

    Args:
        text: A plain text, in UTF-8.
        most: How many words the table lists.
    """
    counts = words_in(text.read_text())
    execution = current_execution()
    table = execution.output("counts.csv")
    table.write_text("word,count\n" + "".join(f"{word},{count}\n" for word, count in counts.most_common(most)))
    execution.log_metrics({"words": counts.total(), "different": len(counts)})
    return counts.total()

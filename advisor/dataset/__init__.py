"""Training data: read and check it, measure its lengths, split it, write it as the trainers read it."""

from advisor.dataset.lengths import measure_lengths
from advisor.dataset.reader import Dataset, read_dataset
from advisor.dataset.replay import draw_replay
from advisor.dataset.split import Split, split
from advisor.dataset.write import write_normalised

__all__ = ["Dataset", "Split", "draw_replay", "measure_lengths", "read_dataset", "split", "write_normalised"]

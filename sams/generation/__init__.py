"""Generation: answers of an exported model to the benchmarks' questions."""
